"""Dynamic sparse no training: swaps inside the rows of any mask until the outputs keep their mean."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError
from sparseworks.core.pattern import ELEMENT, Keep, Pattern
from sparseworks.core.score import Score
from sparseworks.core.solver import SOLVERS, Nothing, Repair, Select, Solver
from sparseworks.core.stats import InputMoments, Stat, Stats
from sparseworks.core.support import Support

_ROWS = 256  # rows that are swapped together, so that what is scanned stays in the cache


@SOLVERS.register("dsnot")
@dataclass(frozen=True)
class DSnoT(Solver):
    """Swap weights of row r while |d_r| > threshold, d_r = sum over dropped j of w_rj E[x_j] (the lost mean output).

    Each cycle grows the dropped j with the largest sign(d) w_j E[x_j] / Var[x_j] and drops the kept p with the smallest
    |w_p| ||x_p|| among those with sign(w_p E[x_p]) = -sign(d); d <- d + w_p E[x_p] - w_j E[x_j]. No entry moves twice,
    and only swaps that lower |d| are made. Where groups are runs of columns (N:M), p comes from the
    group of j, whatever its sign. Patterns that a swap inside a row would break (units of several entries, groups along
    the outputs, nested ones) keep the support that `first` chose.

    Attributes:
        cycles: most swaps of a row.
        share: most swaps as a share of what the row keeps (at least one). 50 swaps are 2 % of a row of LLaMA-7B at 50 %
            sparsity; many more make the mean right at the cost of a larger squared error.
        threshold: mean output per token that may stay lost.
        first: the solver whose support is improved; its values are not used.
        repair: values on the final support; by default the dense ones.

    Source: Zhang et al., 2023, arXiv 2310.08915. Departures: the released threshold is 0.1 on the sum over the tokens of a
    sequence, here it is the same per token at its 2048 tokens, so that the length of sequences does not matter; the
    released code skips feed-forward layers by default, has no `share`, and goes on through swaps that do not lower |d|.
    """

    cycles: int = 50
    share: float = 0.02
    threshold: float = 0.1 / 2048
    first: Solver = field(default_factory=Select)
    repair: Repair = field(default_factory=Nothing)

    def __post_init__(self):
        if self.cycles < 0 or not 0 <= self.share <= 1 or not self.threshold >= 0:
            raise BudgetError(f"dsnot needs cycles >= 0, a share in [0, 1] and threshold >= 0, got {self}.")

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Means and variances of the inputs, and the needs of `first` and of the repair."""
        return self.first.needs | self.repair.needs | {InputMoments}

    def __call__(
        self, weight: Float[Tensor, "rows cols"], stats: Stats, score: Score, pattern: Pattern, keep: Keep | None
    ) -> tuple[Float[Tensor, "rows cols"], Support]:
        """The values of the repair on the swapped support.

        Raises:
            MissingStatError: no input moments.
            NonFiniteError: NaN or infinity in the weight.
        """
        if not bool(torch.isfinite(weight).all()):
            raise NonFiniteError(f"A weight of shape {tuple(weight.shape)} holds NaN or infinity; it cannot be pruned.")
        support = self.first(weight, stats, score, pattern, keep)[1]
        width = swappable(pattern, weight.shape[1])
        if width > 1:
            mask = support.mask().to(weight.device)
            support = Support.from_mask(self._swapped(weight, mask, stats[InputMoments], width))
        return self.repair(weight, support, stats), support

    def bias(
        self, weight: Float[Tensor, "rows cols"], repaired: Float[Tensor, "rows cols"], stats: Stats
    ) -> Float[Tensor, " rows"] | None:
        """The repair's."""
        return self.repair.bias(weight, repaired, stats)

    def _swapped(
        self, weight: Float[Tensor, "rows cols"], mask: Bool[Tensor, "rows cols"], moments: InputMoments, width: int
    ) -> Bool[Tensor, "rows cols"]:
        mean, variance, norm = (v.to(weight.device) for v in (moments.mean, moments.variance, moments.norm))
        gain = torch.where(mean == 0, 0.0, mean / variance)  # a constant input is all mean: it comes back first
        found = []
        for w, m in zip(weight.double().split(_ROWS), mask.split(_ROWS), strict=True):
            most = (self.share * m.sum(dim=1)).floor().clamp(min=1).clamp(max=self.cycles).long()
            found.append(swap(m, w * mean, w * gain, w.abs() * norm, most, self.threshold, width))
        return torch.cat(found) if found else mask


def swappable(pattern: Pattern, cols: int) -> int:
    """Columns within which entries of a row may change places without breaking `pattern`; 1 where none may."""
    if pattern.unit != ELEMENT or pattern.inner is not None or pattern.uses:
        return 1
    return pattern.group.cols or cols


def swap(
    mask: Bool[Tensor, "rows cols"],
    share: Float[Tensor, "rows cols"],
    gain: Float[Tensor, "rows cols"],
    cost: Float[Tensor, "rows cols"],
    most: Tensor,
    threshold: float,
    width: int,
) -> Bool[Tensor, "rows cols"]:
    """The mask after the swaps.

    Args:
        mask: kept entries.
        share: what an entry gives to the mean output of its row, w E[x].
        gain: growth order, w E[x] / Var[x]; the largest with the sign of the lost mean comes back.
        cost: order of dropping; the smallest goes, of those with the other sign where the whole row is one run.
        most: swaps of each row at most, `(rows,)`.
        threshold: a row is done when its lost mean is at most this.
        width: columns of the runs inside which entries are exchanged.
    """
    mask, free = mask.clone(), torch.ones_like(mask)
    lost = (share * ~mask).sum(dim=1)
    alive = torch.arange(mask.shape[0], device=mask.device)
    for cycle in range(int(most.max()) if most.numel() else 0):
        alive = alive[(lost[alive].abs() > threshold) & (most[alive] > cycle)]
        if not alive.numel():
            break
        now = mask[alive], free[alive], share[alive], gain[alive], cost[alive]
        grow, drop, found = _exchange(*now, lost[alive].unsqueeze(1), width)
        alive, grow, drop = alive[found], grow[found], drop[found]
        mask[alive, grow], mask[alive, drop] = True, False
        free[alive, grow] = free[alive, drop] = False
        lost[alive] += share[alive, drop] - share[alive, grow]
    return mask


def _exchange(
    mask: Tensor, free: Tensor, share: Tensor, gain: Tensor, cost: Tensor, lost: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Per row the column to grow, the column to drop, and whether there is such a pair."""
    rows, cols = mask.shape
    sign, against = lost.sign(), mask & free
    if width == cols:
        against &= share * sign < 0
    runs = cost.masked_fill(~against, torch.inf).reshape(rows, cols // width, width)
    cheapest, partner = runs.min(dim=2)
    partner = partner + torch.arange(0, cols, width, device=mask.device)
    given = share.gather(1, partner).masked_fill(cheapest.isinf(), torch.nan)  # no partner: no comparison holds
    lower = (lost + given.repeat_interleave(width, dim=1) - share).abs() < lost.abs()
    best, grow = (gain * sign).masked_fill(~(~mask & free & lower), -torch.inf).max(dim=1)
    return grow, partner.gather(1, (grow // width).unsqueeze(1)).squeeze(1), best > 0
