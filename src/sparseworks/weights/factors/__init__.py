"""Factorised and structured weights: operators, the forms that make them, and their way into a model."""

from __future__ import annotations

from sparseworks.core.form import FORMS, Form
from sparseworks.core.operator import OPERATORS, LinearOperator, Stored
from sparseworks.weights.factors.armor import Wrapped
from sparseworks.weights.factors.blocksparse import BlockSparse
from sparseworks.weights.factors.combine import Chain, Sum
from sparseworks.weights.factors.dense_sparse import DenseSparse
from sparseworks.weights.factors.dictionary import Dictionary
from sparseworks.weights.factors.factorise import Factorised, FactorRow, factorise, factorise_matrix
from sparseworks.weights.factors.lowrank import LowRank
from sparseworks.weights.factors.monarch import Monarch
from sparseworks.weights.factors.parts import BlockDiagonal, Matrix, Shuffle, Sparse
from sparseworks.weights.factors.pixelfly import Blend, Pixelfly
from sparseworks.weights.factors.reparametrise import reparametrise
from sparseworks.weights.factors.shadow import close_factors, open_factors, open_sites
from sparseworks.weights.factors.sltrain import SLTrain, SparseLowRank
from sparseworks.weights.factors.whiten import Whitening

__all__ = [
    "FORMS", "OPERATORS", "Blend", "BlockDiagonal", "BlockSparse", "Chain", "DenseSparse", "Dictionary", "FactorRow", "Factorised",
    "Form", "LinearOperator", "LowRank", "Matrix", "Monarch", "Pixelfly", "SLTrain", "Shuffle", "Sparse", "SparseLowRank", "Stored",
    "Sum", "Whitening", "Wrapped", "close_factors", "factorise", "factorise_matrix", "open_factors", "open_sites", "reparametrise",
]  # fmt: skip
