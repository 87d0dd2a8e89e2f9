"""Hybrid structured sparse optimisation: the optimiser trains, and period by period the least salient groups shrink to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from sparseworks.core.errors import BudgetError
from sparseworks.core.regime import REGIMES, Training
from sparseworks.scores.groups import GROUP_SCORES
from sparseworks.weights.train.units import CutGroups, on_units, total_steps


class When(NamedTuple):
    """A step within a period: number of the period, of the step in it, and steps of a period."""

    period: int
    t: int
    steps: int


@REGIMES.register("shrink_groups")
@dataclass(frozen=True)
class ShrinkGroups(CutGroups):
    """K groups go in P periods between `start` and `cut`: at the first step of period p the lowest are chosen until they are
    K (p + 1) / P, and after step t of its T the newly chosen are multiplied by (T - t - 1) / (T - t): a straight line to exact
    zero, where they stay.

    All train on meanwhile. Scores are those of the weights before the period's first step and of the direction it takes.

    Source: Chen et al., 2024, arXiv 2409.09085 (HESSO). Departure: kept counts are multiples of `multiple` from the start, by
    removing such multiples; the released code rounds what it keeps up at the end of a period.
    """

    score: str = "mixed"
    start: float = 0.1
    periods: int = 10

    def __post_init__(self):
        super().__post_init__()
        if self.periods < 1 or not 0 <= self.start <= self.cut:
            raise BudgetError(
                f"Periods lie between `start` and `cut`, got {self.periods} in [{self.start}, {self.cut}]."
            )

    def when(self, run: Training) -> When | None:
        """Where the step being taken lies; None outside all periods."""
        first, last = round(self.start * total_steps(run)), round(self.cut * total_steps(run))
        steps = max(1, (last - first) // self.periods)
        period, t = divmod(run.done - first, steps)
        return When(period, t, steps) if 0 <= period < self.periods else None

    def before(self, run: Training) -> None:
        """At the start of a period: remember the weights."""
        now = self.when(run)
        if now and now.t == 0:
            on_units(run).units.remember()

    def after(self, run: Training) -> None:
        """Choose, and shrink."""
        now, units = self.when(run), on_units(run).units
        if not now:
            return
        if now.t == 0:
            scores = GROUP_SCORES.get(self.score)(units.sums(run.optimizer))
            count = round(self.removed(run) * (now.period + 1) / self.periods)
            chosen = self.weakest(run, scores, count, ~units.alive)
            units.state["shrinking"] = chosen & units.alive
        shrink(run, units.state["shrinking"], now.t, now.steps)

    def due(self, run: Training) -> bool:
        """At the end of every period."""
        now = self.when(run)
        return now is not None and now.t == now.steps - 1

    def change(self, run: Training) -> None:
        """What has arrived at zero stays there."""
        units = on_units(run).units
        on_units(run).keep_units(units.alive & ~units.state.pop("shrinking"))

    def end(self, run: Training) -> None:
        """Cut what a short run left."""
        super().change(run)

    def scored(self, run: Training) -> torch.Tensor:
        """Without a step there is no direction: by norm."""
        return GROUP_SCORES.get("norm")(on_units(run).units.sums())


def shrink(run: Training, groups: torch.Tensor, t: int, steps: int) -> None:
    """Multiply `groups` by (T - t - 1) / (T - t)."""
    factors = torch.where(groups, (steps - t - 1) / (steps - t), 1.0)
    on_units(run).units.groups.scale(factors)
