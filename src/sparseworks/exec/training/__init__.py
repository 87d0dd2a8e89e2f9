"""Sparse training: layers of which only the kept values exist, in memory, in the gradient and in the optimiser."""

from __future__ import annotations

from sparseworks.exec.training.attention import TrainableSparseAttention as TrainableSparseAttention
from sparseworks.exec.training.conv import TrainableSparseConv2d as TrainableSparseConv2d
from sparseworks.exec.training.feedforward import TrainableSparseMLP as TrainableSparseMLP
from sparseworks.exec.training.index import SparseIndex as SparseIndex
from sparseworks.exec.training.linear import TrainableSparseLinear as TrainableSparseLinear
from sparseworks.exec.training.products import sddmm as sddmm
from sparseworks.exec.training.products import spmm as spmm
from sparseworks.exec.training.swap import trainable as trainable
from sparseworks.exec.window import Window as Window
