"""Gradual pruning: the sparsity rises while the model trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparseworks.core.regime import REGIMES, Regime, Training
from sparseworks.core.schedule import Cadence


@REGIMES.register("gradual")
@dataclass(frozen=True)
class Gradual(Regime):
    """s_t = s_f * schedule((t - t_0) / (t_1 - t_0)) every `every` steps in [t_0, t_1]; what was dropped stays dropped.

    With `Cubic` this is gradual magnitude pruning (Zhu and Gupta, 2017, arXiv 1710.01878).

    Attributes:
        every: steps between two changes.
        start, stop: t_0 and t_1 as shares of the run.
        regrow: let dropped weights come back where they are dense gradients' or a falling schedule's choice.
    """

    every: int = 100
    start: float = 0.0
    stop: float = 0.75
    regrow: bool = False
    timed = True

    def due(self, run: Training) -> bool:
        """At the cadence, and at the end of the ramp."""
        return Cadence(self.every)(run.done + 1) and self._ramp(run) < 1.0

    def _ramp(self, run: Training) -> float:
        return (run.progress - self.start) / max(self.stop - self.start, 1e-9)

    def change(self, run: Training) -> None:
        """Drop down to the count of the schedule."""
        self._prune(run, run.method.schedule(self._ramp(run)))

    def end(self, run: Training) -> None:
        """The final sparsity, whatever the cadence left."""
        self._prune(run, run.method.schedule(1.0))

    def _prune(self, run: Training, share: float) -> None:
        scores = run.scores()
        if not self.regrow:
            scores = {s.name: scores[s.name].masked_fill(~s.mask, -torch.inf) for s in run.sites}
        run.keep(run.choose(scores, run.counts(share)))


@REGIMES.register("regrow")
@dataclass(frozen=True)
class Regrow(Gradual):
    """Gradual pruning whose dropped weights are kept, without gradients, and return with their values when the schedule falls.

    `regrow` makes no difference: every choice is among all entries.
    """

    stop: float = 1.0
    regrow: bool = True
    dense = True

    def before(self, run: Training) -> None:
        """Dropped weights do not move."""
        for site in run.sites:
            site.set_gradient(site.gradient() * site.mask)
