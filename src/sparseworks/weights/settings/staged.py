"""Supports that change between stages only: between megabatches, federated rounds, target updates."""

from __future__ import annotations

from dataclasses import dataclass

from sparseworks.core.regime import REGIMES, Regime, Training
from sparseworks.core.schedule import Rounds, Survivors
from sparseworks.weights.train.dropgrow import among_kept


@REGIMES.register("staged")
@dataclass(frozen=True)
class Staged(Regime):
    """At the start of stage k of `stages` the best entries are chosen by scores measured then; within a stage the support is held.

    How many is said by the method's schedule at (k + 1) / stages: as a share of the final sparsity, or for rounds as the density
    itself. Stages beyond the last keep the final support.

    Attributes:
        stages: number of stages.
        regrow: whether entries that were dropped compete again (with the value zero), else a support only shrinks.
    """

    stages: int = 8
    regrow: bool = False

    def begin(self, run: Training) -> None:
        """The first stage's support."""
        self._choose(run)

    def enter(self, run: Training) -> None:
        """The next stage's."""
        if run.stage < self.stages:
            self._choose(run)

    def _choose(self, run: Training) -> None:
        scores = run.scores()
        run.keep(run.choose(scores if self.regrow else among_kept(run, scores), run.counts(self.share(run))))

    def share(self, run: Training) -> float:
        """Share of the final sparsity that holds in the stage."""
        schedule, at = run.method.schedule, min((run.stage + 1) / self.stages, 1.0)
        if not isinstance(schedule, Rounds | Survivors):
            return schedule(at)
        size = sum(s.shape[0] * s.shape[1] for s in run.sites)
        final = run.method.budget.total({s.name: s.shape[0] * s.shape[1] for s in run.sites}) / size
        reached = schedule.shares(final)[: run.stage + 1][-1]
        return (1.0 - reached) / (1.0 - final) if final < 1.0 else 1.0
