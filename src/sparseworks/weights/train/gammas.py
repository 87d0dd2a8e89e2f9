"""Sparse factors of batch normalisation: L1 on all of them (network slimming), or on those alone whose channels will go."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.regime import REGIMES, Training
from sparseworks.weights.train.units import CutGroups, last_step, on_units, total_steps


@REGIMES.register("sparse_gammas")
@dataclass(frozen=True)
class SparseGammas(CutGroups):
    """Until `cut` the gradient of every factor gamma of a norm gains rate * sign(gamma); then the groups of least |gamma| go.

    With `mark`, L1 acts on all factors until that share of the run and says which groups will go; then weights are again what
    they were at the beginning, a trained model, and L1 acts on the factors of the marked groups alone.
    Where |gamma| < learning rate * rate it is rate * gamma, so that small ones do not swing about zero.

    Source: Liu et al., 2017, arXiv 1708.06519 (network slimming); Jiang et al., 2022 (MaskSparsity). Departure: the budget says how
    many groups go, where both papers set a threshold, 0.01.

    Attributes:
        rate: of L1, 5e-4 in the released code.
        mark: share of the run, or None = all factors are penalised; 0 = by the scores of the model as it is given.
    """

    score: str = "gamma"
    cut: float = 0.6
    rate: float = 5e-4
    mark: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.rate < 0 or not 0 <= (self.mark or 0) <= self.cut:
            raise BudgetError(f"The rate is not negative and `mark` not after `cut`, got {self.rate}, {self.mark}.")

    def begin(self, run: Training) -> None:
        """Remember the trained model, or mark at once."""
        units = on_units(run).units
        if not any(p.scale for p in units.groups.parts):
            raise ModelError(f"Method {run.method.name!r} scales channels by norms, and the couplings hold none.")
        if self.mark == 0:
            self._mark(run)
        elif self.mark is not None:
            units.save_weights()
        super().begin(run)

    def before(self, run: Training) -> None:
        """Add the gradient of the penalty."""
        units = on_units(run).units
        if not bool(units.alive.all()) or run.done >= round(self.cut * total_steps(run)):
            return
        pressed = units.state.get("marked", torch.ones_like(units.alive)).double() * self.rate
        rate = float(run.optimizer.param_groups[0]["lr"])
        for part in units.groups.parts:
            gradient = part.parameter.grad
            if part.scale and gradient is not None:
                strength = units.groups.spread(pressed, part).to(gradient)
                value = part.parameter.detach()
                gradient += strength * torch.where(value.abs() < rate * self.rate, value, value.sign())

    def due(self, run: Training) -> bool:
        """At `mark` and at `cut`."""
        return self._marks(run) or super().due(run)

    def change(self, run: Training) -> None:
        """Mark and go back, or cut."""
        units = on_units(run).units
        if "start" in {name.partition(".")[0] for name in units.state}:
            self._mark(run)
            units.load_weights()
            units.forget_weights()
            run.optimizer.state.clear()
        else:
            super().change(run)

    def end(self, run: Training) -> None:
        """Cut, if the run was too short for it."""
        super().change(run)

    def _marks(self, run: Training) -> bool:
        return bool(self.mark) and last_step(run) == round((self.mark or 0) * total_steps(run))

    def _mark(self, run: Training) -> None:
        units = on_units(run).units
        units.state["marked"] = self.weakest(run, self.scored(run), self.removed(run))
