"""Drop-and-grow: dynamic sparse training on a fixed number of weights (SET, RigL and their kin)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseworks.core.regime import REGIMES, Counts, Regime, Training
from sparseworks.core.schedule import Cadence
from sparseworks.core.score import Score
from sparseworks.scores import Gradient, Random


@REGIMES.register("drop_grow")
@dataclass(frozen=True)
class DropGrow(Regime):
    """Every `every` steps of the first `stop`: drop the share schedule(t / stop) of each group by the method's score, grow as many by `grow`.

    Entries just dropped may grow again and then keep their value; others start at zero, without optimiser state. The
    gradients of `grow` are those of the last step before the change, at every entry.

    Source: Mocanu et al., 2018, arXiv 1707.04780 (SET); Evci et al., 2020, arXiv 1911.11134 (RigL).

    Attributes:
        grow: score of the entries that may come.
        first: score of the first support, before anything is trained.
        every: steps between two changes.
        stop: share of the run after which the support stays.
    """

    grow: Score = field(default_factory=Gradient)
    first: Score = field(default_factory=Random)
    every: int = 100
    stop: float = 0.75
    timed = True

    def begin(self, run: Training) -> None:
        """A sparse start."""
        run.keep(run.choose(run.scores(self.first), run.counts()))

    def due(self, run: Training) -> bool:
        """At the cadence, until `stop`."""
        return Cadence(self.every)(run.done + 1) and run.progress < self.stop

    def change(self, run: Training) -> None:
        """Drop, then grow back to the same counts."""
        counts = run.counts()
        share = run.method.schedule(run.progress / self.stop)
        stay = run.choose(self._among_kept(run, run.scores()), less(counts, share))
        grow = run.scores(self.grow)
        wanted = {s.name: grow[s.name].masked_fill(stay[s.name], torch.inf) for s in run.sites}
        run.keep(run.choose(wanted, counts))

    def _among_kept(self, run: Training, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        return {s.name: scores[s.name].masked_fill(~s.mask, -torch.inf) for s in run.sites}


def less(counts: Counts, share: float) -> Counts:
    """Counts after the share `share` of every group, rounded, is dropped."""
    return {name: kept - (kept * share).round().long() for name, kept in counts.items()}
