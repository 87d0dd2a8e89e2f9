"""Movement pruning: fine-tuning to a new task in which weights that grow stay, however small, and the sparsity rises all the while."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.regime import REGIMES, Training
from sparseworks.core.stats import WeightMovement
from sparseworks.weights.train.gradual import Gradual


@REGIMES.register("moving")
@dataclass(frozen=True)
class Moving(Gradual):
    """The model computes with M * W; S <- S - w g for every entry, kept or not, g = dL/d(M * W); M the best S at the schedule's count.

    Straight through: W itself moves where it is kept only, S everywhere, so that dropped weights return. The share that is
    dropped rises from `start` to `stop` of the run by the method's schedule. The sum S is that of plain gradient descent on
    scores; the authors' code gives it to the optimiser.

    Source: Sanh, Wolf and Rush, 2020, arXiv 2005.07683.

    Attributes:
        every: steps between two choices.
        start, stop: of the ramp, as shares of the run.
    """

    every: int = 1
    start: float = 0.1
    regrow: bool = True
    dense = True
    gives = frozenset({WeightMovement})

    def begin(self, run: Training) -> None:
        """All weights, no movement."""
        for s in run.sites:
            s.state["movement"] = 0.0 * s.weight()

    def before(self, run: Training) -> None:
        """Add to S, and let only kept weights move."""
        for s in run.sites:
            gradient = s.gradient()
            s.state["movement"] = s.state["movement"] - s.weight() * gradient
            s.set_gradient(gradient * s.mask)

    def _prune(self, run: Training, share: float) -> None:
        known = {s.name: [_of(s.state["movement"])] for s in run.sites}
        run.keep(run.choose(run.scores(known=known), run.counts(share)))


def _of(movement: Float[Tensor, "rows cols"]) -> WeightMovement:
    stat = WeightMovement(*movement.shape)
    stat.update(movement)
    return stat
