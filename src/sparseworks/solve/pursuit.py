"""Orthogonal matching pursuit as a function, in double precision."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.budget import Count
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.solve.coders.omp import OMP


def omp(
    dictionary: Float[Tensor, "atoms features"], signal: Float[Tensor, "signals features"], atoms: int
) -> Float[Tensor, "signals atoms"]:
    """Codes z with `atoms` nonzeros, z D ~ signal, by the coder `OMP`; one signal a row, all in one batch.

    Atoms should have unit norm. Computes in float64 and returns the signal's dtype.

    Args:
        dictionary: one atom a row.
        signal: what to represent.
        atoms: how many atoms each signal may use; a signal that is met exactly takes no more.

    Raises:
        ShapeError: signals and atoms have different numbers of features.
        BudgetError: more atoms asked for than there are atoms or features.
        NonFiniteError: NaN or infinity.
    """
    if dictionary.dim() != 2 or signal.dim() != 2 or dictionary.shape[1] != signal.shape[1]:
        raise ShapeError(
            f"Atoms of shape {tuple(dictionary.shape)} and signals of shape {tuple(signal.shape)} must share the last axis."
        )
    if not 0 <= atoms <= min(dictionary.shape):
        raise BudgetError(f"Cannot use {atoms} of {dictionary.shape[0]} atoms with {dictionary.shape[1]} features.")
    return OMP(Count(atoms))(dictionary.double(), signal.double()).z.to(signal.dtype)
