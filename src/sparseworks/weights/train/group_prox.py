"""Proximal training on groups: after every step of the optimiser all groups shrink, the weak ones to exactly zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparseworks.core.errors import BudgetError
from sparseworks.core.regime import REGIMES, Training
from sparseworks.solve.groups import envelope_prox, lasso_prox
from sparseworks.weights.train.units import CutGroups, on_units


@REGIMES.register("group_prox")
@dataclass(frozen=True)
class GroupProx(CutGroups):
    """x <- prox_{rate * strength * penalty}(x) after every step until `cut`, rate the learning rate; then the weakest go.

    `envelope`: gs_k, the convex envelope of "at most k groups are not zero", k what the budget keeps: groups that belong to the
    k strongest are hardly shrunk. `lasso`: sum_j sqrt(n_j) |x_j| with n_j entries, which shrinks all alike.

    Source: weighted group sparse envelope function (WGSEF) with d_j = 1; group lasso of Yuan & Lin (2006).
    """

    cut: float = 1.0
    kind: Literal["envelope", "lasso"] = "envelope"
    strength: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in ("envelope", "lasso") or self.strength < 0:
            raise BudgetError(
                f'A penalty is "envelope" or "lasso" and not negative, got {self.kind!r}, {self.strength}.'
            )

    def after(self, run: Training) -> None:
        """Shrink."""
        step = self.strength * float(run.optimizer.param_groups[0]["lr"])
        units = on_units(run).units
        if step == 0 or not bool(units.alive.all()):
            return
        sums = units.sums()
        norms = sums.squares.sqrt()
        if self.kind == "envelope":
            factors = envelope_prox(norms, max(units.groups.total - self.removed(run), 1), step)
        else:
            factors = lasso_prox(norms, step, sums.entries.sqrt())
        units.groups.scale(factors)
