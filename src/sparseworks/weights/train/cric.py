"""Corrective redundancy identification: before groups are removed, trial runs show which of them the model could not do without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """HESSO whose groups are chosen by trials, at the start of each period at most `trials` of `trial` of the run each.

    A trial shrinks its groups to zero while all train, then the weights come back. The first takes the lowest K (p + 1) / P
    that the period is to leave gone; whatever is among them at a step of a trial and has not been tried goes into the next;
    trials end when there is nothing new. Then the lowest by mean score over all steps of all trials plus the deviation of the
    loss shrink during what is left of the period. A period too short for trials does without.

    Source: Chen et al., 2024, arXiv 2409.09085 (HESSO-CRIC). In the released code the deviation is that of the layer: mean over
    s of the loss with the share s of its weakest groups at zero, over the loss before, divided by its number of groups. So it
    is here if the sparsifier is given `data`, on which it is measured before the first step. A regime sees gradients, not the
    loss: without data the deviation of a group is the line integral of the gradient along its way to zero,
    sum_t <g_t, change of x_t>, divided by its norm over the groups as the scores are. The code also has one period for all K,
    which is `periods` = 1: trials of weights that so many groups leave at once say little about those that stay.
    """

    periods: int = 5
    trials: int = 3
    trial: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if self.trials < 1 or self.trials * self.trial > (self.cut - self.start) / self.periods:
            raise BudgetError(
                f"{self.trials} trials of {self.trial:g} of the run do not fit into one of {self.periods} periods "
                f"between {self.start:g} and `cut`, {self.cut:g}."
            )

    def begin(self, run: Training) -> None:
        """With data at hand: how much the loss bears the loss of each layer."""
        super().begin(run)
        units, loss = on_units(run).units, on_units(run).loss
        if loss is not None:
            units.state["layers"] = deviations(units, self.scored(run), loss)

    def when(self, run: Training) -> When | None:
        """Trials are periods with negative numbers."""
        period, state = super().when(run), on_units(run).units.state
        if period is None:
            return None
        if "begun" in state:
            late = int(state["begun"]) - (run.done - period.t)
            return When(period.period, period.t - late, period.steps - late)
        steps = max(2, round(self.trial * total_steps(run)))
        trials = min(self.trials, (period.steps - 1) // steps)
        trial, t = divmod(period.t, steps)
        return When(trial - trials, t, steps) if trials else period

    def before(self, run: Training) -> None:
        """In trials every step is scored."""
        now = self.when(run)
        if now and now.period < 0:
            on_units(run).units.remember()
        else:
            super().before(run)

    def after(self, run: Training) -> None:
        """A step of a trial, or of the removal."""
        now, units = self.when(run), on_units(run).units
        if now is None:
            return
        if now.period < 0:
            self.tried(run, now)
        elif now.t == 0 and "chosen" in units.state:
            units.state["shrinking"] = units.state["chosen"]
            shrink(run, units.state["shrinking"], now.t, now.steps)
        else:
            super().after(run)

    def tried(self, run: Training, now: When) -> None:
        """A step of a trial: score, see what else is low, add up what the loss does, and shrink."""
        units = on_units(run).units
        scores = GROUP_SCORES.get(self.score)(units.sums(run.optimizer))
        lowest = self.lowest(run, scores)
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
        if "trial" not in state:
            super().change(run)
            units.state = _layers(state)
            return
        last = self.when(run)
        units.load_weights()
        state["trial"], state["tried"] = state["new"], state["tried"] | state["new"]
        state["new"] = torch.zeros_like(state["new"])
        # `change` is called after the step was counted: the last step of a trial is one back
        if not bool(state["trial"].any()) or last is None or last.period >= 0:
            deviation = state.get("layers", state["cost"] / state["cost"].norm().clamp(min=1e-30))
            chosen = self.lowest(run, state["sum"] / state["count"] + deviation)
            units.state = _layers(state) | {"chosen": chosen, "begun": torch.tensor(run.done)}

    def lowest(self, run: Training, scores: Float[Tensor, " groups"]) -> Bool[Tensor, " groups"]:
        """The living groups of the lowest scores that the present period is to take."""
        period, alive = super().when(run), on_units(run).units.alive
        assert period is not None  # trials leave a step of their period
        count = round(self.removed(run) * (period.period + 1) / self.periods)
        return self.weakest(run, scores, count, ~alive) & alive


PROJECTED = (0.25, 0.5, 0.75)
"""Shares of a layer's groups, the weakest, whose loss is tried out: those of the released code."""


def deviations(units: Units, scores: Float[Tensor, " groups"], loss: Callable[[], float]) -> Float[Tensor, " groups"]:
    """mean_s L(the weakest share s of the layer at zero) / L / groups of the layer, the same for all groups of a layer."""
    whole, found = max(loss(), torch.finfo(torch.float32).tiny), torch.zeros_like(scores)
    units.save_weights()
    for coupling, at in units.groups.slices():
        weakest = scores[at].argsort(stable=True) + at.start
        for share in PROJECTED:
            factors = torch.ones_like(scores)
            factors[weakest[: max(1, int(share * coupling.units))]] = 0.0
            units.groups.scale(factors)
            found[at] += loss() / whole / (len(PROJECTED) * coupling.units)
            units.load_weights()
    units.forget_weights()
    return found


def _layers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stays from period to period."""
    return {name: state[name] for name in ("layers",) if name in state}


def cost(units: Units, groups: Bool[Tensor, " groups"], left: int) -> Float[Tensor, " groups"]:
    """<g, -x / left> of the groups that are about to lose 1 / left of their entries: how much the loss rises, to first order."""
    rises = units.groups.sum(lambda p: -p.data * p.grad / left if p.grad is not None else torch.zeros_like(p))
    return torch.where(groups, rises, 0.0)
