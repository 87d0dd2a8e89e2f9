"""SRigL: drop-and-grow with the same number of inputs for every neuron that lives."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.pattern import ROW, Pattern
from sparseworks.core.regime import REGIMES, Training
from sparseworks.core.select import select_mask, top
from sparseworks.weights.train.dropgrow import DropGrow

_ROWS = Pattern(group=ROW)


@REGIMES.register("fan_in_drop_grow")
@dataclass(frozen=True)
class FanInDropGrow(DropGrow):
    """Drop-and-grow of neurons that all keep k' inputs, those with too few salient inputs none at all.

    Of a layer with n kept entries the share schedule(t) may move: salient are its n_keep best entries by the method's score
    and its n_grow best by `grow`. A neuron with fewer of them than max(1, floor(ablate * k)), k the inputs of a neuron while
    all live, is ablated, except in the last site, and never so many that k' = floor(n / living) would exceed the inputs.
    Living neurons keep their share of the n_keep best (at most k', the largest) and fill up to k' by `grow`. An ablated neuron
    lives again when its inputs are salient again. For pattern "live-fan-in".

    Source: Lasby et al., 2023, arXiv 2305.02299 (SRigL). Where a neuron holds more than k' of the best, the authors' code
    drops any of them; here the smallest go.

    Attributes:
        ablate: gamma; 0 leaves all neurons alive.
    """

    ablate: float = 0.3

    def change(self, run: Training) -> None:
        """Layer by layer."""
        known, masks = self._known(run), {}
        drop, grow, counts = run.scores(known=known), run.scores(self.grow, known), run.counts()
        for s in run.sites:
            each, last = int(counts[s.name][0]), s is run.sites[-1]
            kept = int(s.mask.sum())
            moving = int(kept * self._share(run) + 1e-9)
            best = _best(drop[s.name].masked_fill(~s.mask, -torch.inf), kept - moving)
            salient = (best | _best(grow[s.name], moving)).sum(dim=1)
            least = 0 if last or not self.ablate else max(1, int(self.ablate * each))
            live = alive(salient, least, ceil(each * s.shape[0] / max(s.shape[1], 1)))
            masks[s.name] = self._fill(s.mask, drop[s.name], grow[s.name], live, (kept - moving, each * s.shape[0]))
        self._keep(run, masks)

    @staticmethod
    def _fill(mask: Tensor, drop: Tensor, grow: Tensor, live: Tensor, sizes: tuple[int, int]) -> Bool[Tensor, "r c"]:
        staying, total = sizes
        each = total // max(int(live.sum()), 1)
        quota = torch.where(live, each, 0)
        among = drop.masked_fill(~(mask & live[:, None]), -torch.inf)
        best = _best(among, min(staying, int((mask & live[:, None]).sum())))
        first = select_mask(among.masked_fill(~best, -torch.inf), _ROWS, quota) & best
        return select_mask(grow.masked_fill(first, torch.inf), _ROWS, quota)


def alive(salient: Int[Tensor, " rows"], least: int, fewest: int) -> Bool[Tensor, " rows"]:
    """Neurons with at least `least` salient inputs, or where those are fewer than `fewest`, the `fewest` with most."""
    live = salient >= least
    return live if int(live.sum()) >= fewest else top(salient[None], min(fewest, salient.numel()))[0]


def _best(scores: Float[Tensor, "rows cols"], count: int) -> Bool[Tensor, "rows cols"]:
    return select_mask(scores, Pattern(), count)
