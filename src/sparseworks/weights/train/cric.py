"""Corrective redundancy identification: before groups are removed, trial runs show which of them the model could not do without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.regime import REGIMES, Training
from sparseworks.scores.groups import GROUP_SCORES
from sparseworks.weights.train.hesso import ShrinkGroups, When, shrink
from sparseworks.weights.train.units import Units, on_units, total_steps


@REGIMES.register("shrink_groups_after_trials")
@dataclass(frozen=True)
class ShrinkAfterTrials(ShrinkGroups):
    """HESSO whose K groups are chosen by trials, at most `trials` of `trial` of the run each, from `start` on.

    A trial shrinks its groups to zero while all train, then the weights come back. The first takes the K lowest; whatever is
    among the K lowest at a step of a trial and has not been tried goes into the next; trials end when there is nothing new.
    Then the K lowest by mean score over all steps of all trials plus the deviation of the loss shrink in one period to `cut`.

    Source: Chen et al., 2024, arXiv 2409.09085 (HESSO-CRIC). Departure: a regime sees gradients, not the loss, so the deviation
    of a group is the line integral of the gradient along its way to zero, sum_t <g_t, change of x_t>, divided by its norm over
    the groups as the scores are; the released code measures the loss after projecting whole layers.
    """

    periods: int = 1
    trials: int = 10
    trial: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        if self.trials < 1 or self.start + self.trials * self.trial > self.cut:
            raise BudgetError(
                f"{self.trials} trials of {self.trial:g} of the run do not end before `cut`, {self.cut:g}."
            )

    def when(self, run: Training) -> When | None:
        """Trials are periods with negative numbers."""
        state = on_units(run).units.state
        first = round(self.start * total_steps(run))
        if "chosen" not in state:
            steps = max(2, round(self.trial * total_steps(run)))
            trial, t = divmod(run.done - first, steps)
            return When(trial - self.trials, t, steps) if trial >= 0 else None
        begun = int(state["begun"])
        steps = max(1, round(self.cut * total_steps(run)) - begun)
        t = run.done - begun
        return When(0, t, steps) if t < steps else None

    def before(self, run: Training) -> None:
        """In trials every step is scored."""
        if self.when(run) and "chosen" not in on_units(run).units.state:
            on_units(run).units.remember()

    def after(self, run: Training) -> None:
        """A step of a trial, or of the removal."""
        now, units = self.when(run), on_units(run).units
        if now is None:
            return
        if "chosen" in units.state:
            if now.t == 0:
                units.state["shrinking"] = units.state["chosen"]
            shrink(run, units.state["shrinking"], now.t, now.steps)
            return
        scores = GROUP_SCORES.get(self.score)(units.sums(run.optimizer))
        lowest = self.weakest(run, scores, self.removed(run))
        if "tried" not in units.state:
            units.save_weights()
            none = torch.zeros_like(scores)
            units.state |= {
                "trial": lowest,
                "tried": lowest,
                "new": none > 0,
                "sum": none,
                "count": none[:1],
                "cost": none,
            }
        state = units.state
        state["sum"], state["count"] = state["sum"] + scores, state["count"] + 1
        state["new"] = state["new"] | (lowest & ~state["tried"])
        state["cost"] = state["cost"] + cost(units, state["trial"], now.steps - now.t)
        shrink(run, state["trial"], now.t, now.steps)

    def change(self, run: Training) -> None:
        """After a trial the weights come back; after the removal the groups stay away."""
        units = on_units(run).units
        state = units.state
        if "chosen" in state:
            super().change(run)
            return
        last = self.when(run)
        units.load_weights()
        state["trial"], state["tried"] = state["new"], state["tried"] | state["new"]
        state["new"] = torch.zeros_like(state["new"])
        # `change` is called after the step was counted: the last step of a trial is one back
        if not bool(state["trial"].any()) or last is None or last.period >= 0:
            deviation = state["cost"] / state["cost"].norm().clamp(min=1e-30)
            scores = state["sum"] / state["count"] + deviation
            chosen = self.weakest(run, scores, self.removed(run))
            units.forget_weights()
            units.state = {"chosen": chosen, "begun": torch.tensor(run.done)}


def cost(units: Units, groups: Bool[Tensor, " groups"], left: int) -> Float[Tensor, " groups"]:
    """<g, -x / left> of the groups that are about to lose 1 / left of their entries: how much the loss rises, to first order."""
    rises = units.groups.sum(lambda p: -p.data * p.grad / left if p.grad is not None else torch.zeros_like(p))
    return torch.where(groups, rises, 0.0)
