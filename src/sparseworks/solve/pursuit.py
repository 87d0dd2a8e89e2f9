"""Matching pursuits: greedy selection of atoms, one per round, with an exact fit on those chosen."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError
from sparseworks.core.pattern import ROW, Pattern
from sparseworks.core.select import select

_PER_SIGNAL = Pattern(group=ROW)


def omp(
    dictionary: Float[Tensor, "atoms features"], signal: Float[Tensor, "signals features"], atoms: int
) -> Float[Tensor, "signals atoms"]:
    """Orthogonal matching pursuit: codes z with `atoms` nonzeros, z D ~ signal; one signal a row, all in one batch.

    Atoms should have unit norm. Computes in float64 and returns the signal's dtype.

    Args:
        dictionary: one atom a row.
        signal: what to represent.
        atoms: how many atoms each signal may use; a signal that is met exactly stops changing.

    Raises:
        ShapeError: signals and atoms have different numbers of features.
        BudgetError: more atoms asked for than there are atoms or features.
        NonFiniteError: NaN or infinity.

    Source: Pati et al., 1993; the batch form of Rubinstein et al., 2008.
    """
    if dictionary.dim() != 2 or signal.dim() != 2 or dictionary.shape[1] != signal.shape[1]:
        raise ShapeError(
            f"Atoms of shape {tuple(dictionary.shape)} and signals of shape {tuple(signal.shape)} must share the last axis."
        )
    if not 0 <= atoms <= min(dictionary.shape):
        raise BudgetError(f"Cannot use {atoms} of {dictionary.shape[0]} atoms with {dictionary.shape[1]} features.")
    if not bool(torch.isfinite(dictionary).all() & torch.isfinite(signal).all()):
        raise NonFiniteError("Atoms or signals hold NaN or infinity.")
    d, y = dictionary.double(), signal.double()
    chosen = torch.empty(len(y), 0, dtype=torch.long, device=y.device)
    codes = torch.zeros(len(y), len(d), dtype=torch.float64, device=y.device)
    for _ in range(atoms):
        chosen, codes = omp_round(d, y, chosen, codes)
    return codes.to(signal.dtype)


def omp_round(
    dictionary: Float[Tensor, "atoms features"],
    signal: Float[Tensor, "signals features"],
    chosen: Int[Tensor, "signals used"],
    codes: Float[Tensor, "signals atoms"],
) -> tuple[Int[Tensor, "signals used+1"], Float[Tensor, "signals atoms"]]:
    """One round: the atom most correlated with each residual, argmax_k |<d_k, y - z D>|, then least squares on all chosen.

    The choice is `select` with one unit per signal and the residual correlation as score. Gives the chosen atoms in the
    order of choice, and the new codes.
    """
    correlation = ((signal - codes @ dictionary) @ dictionary.T).abs().scatter(1, chosen, -torch.inf)
    _, new = select(correlation, _PER_SIGNAL, 1).indices()
    chosen = torch.cat([chosen, new.to(chosen.device).unsqueeze(1)], dim=1)
    used = dictionary[chosen]
    # Least norm: a repeated atom must not blow up the codes.
    fit = (signal.unsqueeze(1) @ torch.linalg.pinv(used)).squeeze(1)
    return chosen, torch.zeros_like(codes).scatter(1, chosen, fit)
