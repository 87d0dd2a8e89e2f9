"""Repairs of one layer's values: least squares on the support, and bias correction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.solver import REPAIRS, Nothing, Repair
from sparseworks.core.stats import Gram, InputMoments, Stat, Stats
from sparseworks.core.support import Support
from sparseworks.solve.least_squares import least_squares


@REPAIRS.register("least_squares")
@dataclass(frozen=True)
class LeastSquares(Repair):
    """argmin over W' on the support of E||(W - W') x||^2 + damp * mean(E[x_j^2]) * ||W - W'||^2, exact, row by row.

    Inputs that are never active keep their weights. The calibrated error never rises: masking alone is the smallest
    ||W - W'|| on the support, so whatever the damping costs is less than what the fit gains.

    Attributes:
        damp: shrinks the change of weights; 0 is plain least squares. The default costs next to nothing with many
            calibration tokens; without it a fit on fewer tokens than inputs means little on other data.
        intercept: solve for the layer's bias together with the weights (H becomes the covariance of the inputs).

    Source: the normal equations on a fixed support; as a pruning repair e.g. Frantar and Alistarh, 2022, arXiv 2208.11580.
    """

    damp: float = 1e-2
    intercept: bool = False
    needs: ClassVar[frozenset[type[Stat]]] = frozenset({Gram})

    def __post_init__(self):
        if not self.damp >= 0:
            raise BudgetError(f"least_squares needs damp >= 0, got {self.damp}.")

    def __call__(
        self, weight: Float[Tensor, "rows cols"], support: Support, stats: Stats
    ) -> Float[Tensor, "rows cols"]:
        """The weights that give the outputs closest to the dense layer's."""
        gram = stats[Gram]
        moments = gram.damped(self.damp)
        if self.intercept:
            moments = moments - torch.outer(gram.mean, gram.mean)
        return least_squares(weight, support, moments)

    def bias(
        self, weight: Float[Tensor, "rows cols"], repaired: Float[Tensor, "rows cols"], stats: Stats
    ) -> Float[Tensor, " rows"] | None:
        """(W - W') E[x] where the intercept is solved for, else None."""
        return lost_mean(weight, repaired, stats[Gram].mean) if self.intercept else None


@REPAIRS.register("bias")
@dataclass(frozen=True)
class BiasCorrection(Repair):
    """b <- b + (W - W') E[x]: the outputs keep their mean (Nagel et al., 2019, arXiv 1906.04721; for pruning FLAP, 2312.11983).

    Attributes:
        first: the repair of the weights before it.
    """

    first: Repair = field(default_factory=Nothing)

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Input means, and the needs of `first`."""
        return self.first.needs | {InputMoments}

    def __call__(
        self, weight: Float[Tensor, "rows cols"], support: Support, stats: Stats
    ) -> Float[Tensor, "rows cols"]:
        """What `first` makes of the weights."""
        return self.first(weight, support, stats)

    def bias(
        self, weight: Float[Tensor, "rows cols"], repaired: Float[Tensor, "rows cols"], stats: Stats
    ) -> Float[Tensor, " rows"] | None:
        """(W - W') E[x]."""
        return lost_mean(weight, repaired, stats[InputMoments].mean)


def lost_mean(
    weight: Float[Tensor, "rows cols"], repaired: Float[Tensor, "rows cols"], mean: Float[Tensor, " cols"]
) -> Float[Tensor, " rows"]:
    """(W - W') E[x], in the weight's dtype and on its device."""
    change = weight.double() - repaired.double()
    return (change @ mean.to(change.device)).to(weight.dtype)
