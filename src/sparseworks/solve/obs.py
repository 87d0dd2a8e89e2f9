"""The OBS sweep (SparseGPT): left to right, remove, and let the columns to the right make it good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Keep, Pattern
from sparseworks.core.score import Score
from sparseworks.core.select import select
from sparseworks.core.solver import SOLVERS, Solver, masked
from sparseworks.core.stats import Gram, Stat, Stats
from sparseworks.core.support import Support
from sparseworks.solve.cholesky import SweepFactor, inverse_factor
from sparseworks.solve.guard import keep_better, require_finite
from sparseworks.solve.stripes import stripes

Choose = Callable[[Float[Tensor, "rows cols"], slice], Bool[Tensor, "rows some"]]
"""`choose(current weight, columns) -> mask of those columns`."""


@SOLVERS.register("obs_sweep")
@dataclass(frozen=True)
class ObsSweep(Solver):
    """For each column j, e = (w_j - q_j) / U_jj and W_:,k -= e U_jk for all k > j, with U^T U = H^-1 upper.

    q_j is w_j on the support and 0 elsewhere. The support is chosen on the way, from weights updated so far: per block
    of columns where the pattern's groups reach over all columns (each block gets the same share, all rows together for
    groups of the whole tensor), per group of columns where they are short (N:M, V:N:M). Patterns that no block of
    columns can decide choose first, and the sweep keeps their support. Inputs that are never active lose their weights.
    Departure: a row that the sweep left worse than masking alone keeps its masked weights.

    Source: Frantar and Alistarh, 2023, arXiv 2301.00774 (block 128, damping 0.01 of the mean diagonal).
    """

    block: int = 128
    damp: float = 0.01
    needs: ClassVar[frozenset[type[Stat]]] = frozenset({Gram})

    def __post_init__(self):
        if self.block < 1 or not self.damp >= 0:
            raise BudgetError(f"obs_sweep needs block >= 1 and damp >= 0, got block={self.block}, damp={self.damp}.")

    def __call__(
        self, weight: Float[Tensor, "rows cols"], stats: Stats, score: Score, pattern: Pattern, keep: Keep | None
    ) -> tuple[Float[Tensor, "rows cols"], Support]:
        """New weight and support.

        Raises:
            MissingStatError: no Gram statistic.
            NonFiniteError: NaN or infinity in the weight.
        """
        gram = stats[Gram]
        require_finite(weight, gram.total)
        swept, support = self._swept(weight, stats, score, pattern, keep)
        # the sum over tokens ranks as the mean does, and needs no copy
        return keep_better(
            weight, masked(swept.to(weight.dtype), support), masked(weight, support), gram.total
        ), support

    def _swept(
        self, weight: Tensor, stats: Stats, score: Score, pattern: Pattern, keep: Keep | None
    ) -> tuple[Tensor, Support]:
        """What the sweep proposes; its factor, as large as the statistics, is let go on return."""
        work, upper = _alive(weight, stats[Gram]), inverse_factor(stats[Gram], self.damp)
        how = stripes(pattern, (weight.shape[0], weight.shape[1]), keep, self.block)
        if how is None:
            fixed = select(score(work, stats), pattern, keep).mask().to(work.device)
            swept, mask = sweep(work, upper, lambda _, at: fixed[:, at], self.block, self.block)
            return swept, Support.from_mask(mask)
        known = Stats([*stats, SweepFactor(weight.shape[0], upper)], site=stats.site)

        def choose(current: Tensor, at: slice) -> Tensor:
            return select(score.columns(current, known, at), how.pattern, how.keep(at.start)).mask().to(work.device)

        swept, mask = sweep(work, upper, choose, how.step, how.block)
        return swept, Support.from_mask(mask)


def sweep(
    weight: Float[Tensor, "rows cols"],
    upper: Float[Tensor, "cols cols"],
    choose: Choose,
    step: int,
    block: int,
) -> tuple[Float[Tensor, "rows cols"], Bool[Tensor, "rows cols"]]:
    """The sweep itself.

    Args:
        weight: float32 or float64.
        upper: U with U^T U = H^-1, see `inverse_factor`.
        choose: gives the mask of the next columns from the weights updated so far.
        step: columns chosen at a time; divides `block`.
        block: columns after which everything to the right is updated in one product.
    """
    work = weight.clone()
    mask = torch.zeros_like(work, dtype=torch.bool)
    for start in range(0, work.shape[1], block):
        end = min(start + block, work.shape[1])
        errors, factor = torch.empty_like(work[:, start:end]), upper[start:end, start:].to(work).contiguous()
        for j in range(start, end):
            if (j - start) % step == 0:
                at = slice(j, min(j + step, end))
                mask[:, at] = choose(work, at)
            row = factor[j - start]
            lost = torch.where(mask[:, j], 0.0, work[:, j] / row[j - start])
            work[:, j] = torch.where(mask[:, j], work[:, j], 0.0)
            work[:, j + 1 : end].addr_(lost, row[j + 1 - start : end - start], alpha=-1)
            errors[:, j - start] = lost
        work[:, end:].addmm_(errors, factor[:, end - start :], alpha=-1)
    return work, mask


def _alive(weight: Float[Tensor, "rows cols"], gram: Gram) -> Float[Tensor, "rows cols"]:
    """The weight in the precision of the sweep, zero where the input never is anything else."""
    work = weight.double() if weight.dtype == torch.float64 else weight.float()
    return torch.where((gram.total.diagonal() > 0).to(work.device), work, torch.zeros((), dtype=work.dtype))
