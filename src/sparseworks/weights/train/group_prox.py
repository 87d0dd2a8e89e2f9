"""Proximal training on groups: after every step of the optimiser all groups shrink, the weak ones to exactly zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.regime import REGIMES, Training
from sparseworks.solve.groups import envelope_prox, lasso_prox
from sparseworks.weights.train.units import CutGroups, on_units


@REGIMES.register("group_prox")
@dataclass(frozen=True)
class GroupProx(CutGroups):
    """x <- prox_{rate * strength * penalty}(x) after every step until `cut`, rate the learning rate; then the weakest go.

    `envelope`: gs_k with weights d_j, the convex envelope of "at most k groups are not zero", k what the budget keeps: groups
    that belong to the k strongest are hardly shrunk. `lasso`: sum_j |x_j| / sqrt(d_j), which shrinks all alike. Groups compete
    by sqrt(d_j) |x_j|; `balanced` sets d_j = 1 / mean |x|^2 of the coupling at the beginning, so that layers of large weights
    do not take all, otherwise d_j = 1.

    Source: Refael, Arbel and Huleihel, 2022, arXiv 2212.12921 (WGSEF), whose weights are free; group lasso of Yuan and Lin (2006).
    """

    cut: float = 1.0
    kind: Literal["envelope", "lasso"] = "envelope"
    strength: float = 0.1
    balanced: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in ("envelope", "lasso") or self.strength < 0:
            raise BudgetError(
                f'A penalty is "envelope" or "lasso" and not negative, got {self.kind!r}, {self.strength}.'
            )

    def begin(self, run: Training) -> None:
        """Weigh the groups."""
        groups = on_units(run).units.groups
        squares = groups.sum(lambda p: p.data.square())
        weights = torch.ones_like(squares)
        for _, at in groups.slices():
            if self.balanced:
                weights[at] = 1 / squares[at].mean().clamp(min=torch.finfo(squares.dtype).tiny)
        on_units(run).units.state["weights"] = weights
        super().begin(run)

    def after(self, run: Training) -> None:
        """Shrink."""
        step = self.strength * float(run.optimizer.param_groups[0]["lr"])
        units = on_units(run).units
        if step == 0 or not bool(units.alive.all()):
            return
        norms, weights = units.groups.sum(lambda p: p.data.square()).sqrt(), units.state["weights"]
        if self.kind == "envelope":
            factors = envelope_prox(norms, max(units.groups.total - self.removed(run), 1), step, weights)
        else:
            factors = lasso_prox(norms, step, weights.rsqrt())
        units.groups.scale(factors)

    def scored(self, run: Training) -> Float[Tensor, " groups"]:
        """sqrt(d_j) |x_j|."""
        return super().scored(run) * on_units(run).units.state["weights"].sqrt()
