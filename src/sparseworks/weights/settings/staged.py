"""Supports that change between stages only: between megabatches of a stream, between the target updates of an agent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparseworks.core.errors import BudgetError
from sparseworks.core.regime import REGIMES, Regime, Training
from sparseworks.core.schedule import Rounds, Survivors
from sparseworks.weights.train.dropgrow import among_kept


@REGIMES.register("staged")
@dataclass(frozen=True)
class Staged(Regime):
    """At the start of stage k = 0, 1, ... of `stages` the best entries are chosen by scores measured then, and held within the stage.

    How many is said by the method's schedule at t_k = start + (1 - start) k / (stages - 1): as the share of the final sparsity,
    or, if it counts rounds or survivors, as density p^t_k for a final density p. Stages beyond the last change nothing, and a
    run that ends early keeps what it has. Scores that need statistics take them from the `data` of the stage, or from its first
    step of training.

    Source: Misra, Runwal, Chen, Wang and Rish, 2022, arXiv 2204.01640 (APP: p_k = 0.8^tau_k, tau_k from 1 to 4.5).

    Attributes:
        stages: number of stages.
        start: t_0; default: 1 / stages.
        regrow: whether entries that were dropped compete again (with the value zero), else a support only shrinks.
    """

    stages: int = 8
    start: float | None = None
    regrow: bool = False
    emergent = True

    def __post_init__(self):
        if self.stages < 1 or not 0.0 <= (self.start or 0.0) <= 1.0:
            raise BudgetError(f"Stages are at least one, from a `start` in [0, 1]; got {self.stages}, {self.start}.")

    def begin(self, run: Training) -> None:
        """The first stage's support."""
        self.enter(run)

    def enter(self, run: Training) -> None:
        """The next stage's, now or after its first step."""
        later = bool(run.method.score.needs) and not run.measured
        for s in run.sites:
            s.state["waiting"] = torch.tensor(later)
        if not later:
            self.change(run)

    def due(self, run: Training) -> bool:
        """After the first step, if there were no data before it."""
        return any(bool(s.state["waiting"]) for s in run.sites)

    def change(self, run: Training) -> None:
        """The best by scores of the model as it is now."""
        for s in run.sites:
            s.state["waiting"] = torch.tensor(False)
        if run.stage >= self.stages:
            return
        scores = run.scores()
        run.keep(run.choose(scores if self.regrow else among_kept(run, scores), run.counts(self.share(run))))

    def share(self, run: Training) -> float:
        """Share of the final sparsity that holds in the stage."""
        start = 1.0 / self.stages if self.start is None else self.start
        way = min(run.stage / max(self.stages - 1, 1), 1.0) if self.stages > 1 else 1.0
        at = run.method.schedule(start + (1.0 - start) * way)
        if not isinstance(run.method.schedule, Rounds | Survivors):
            return at
        sizes = {s.name: s.site.size for s in run.sites}
        final = run.method.budget.total(sizes) / sum(sizes.values())
        return (1.0 - final**at) / (1.0 - final) if final < 1.0 else 1.0
