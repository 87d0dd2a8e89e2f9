"""Straight-through training: the model computes with masked weights, the optimiser moves dense ones."""

from __future__ import annotations

from dataclasses import dataclass

from sparseworks.core.regime import REGIMES, Regime, Training


@REGIMES.register("straight")
@dataclass(frozen=True)
class Straight(Regime):
    """W <- W - lr (g(M * W) + decay (1 - M) * W), M the method's support of W, chosen anew every `every` steps.

    The gradient at the masked weights is applied to all of W. `decay` = 0 is the plain straight-through estimator,
    2e-4 is SR-STE (Zhou et al., 2021, arXiv 2102.04010).
    """

    decay: float = 0.0
    every: int = 1
    dense = True

    def begin(self, run: Training) -> None:
        """The support of the weights as they are."""
        self.change(run)

    def before(self, run: Training) -> None:
        """Add the decay of dropped weights to the gradient."""
        if self.decay:
            for s in run.sites:
                s.set_gradient(s.gradient() + self.decay * s.weight() * ~s.mask)

    def due(self, run: Training) -> bool:
        """Every `every` steps."""
        return (run.done + 1) % self.every == 0

    def change(self, run: Training) -> None:
        """Choose again, among all entries."""
        run.keep(run.choose(run.scores(), run.counts()))

    def end(self, run: Training) -> None:
        """The support of the last weights."""
        self.change(run)

    def macs(self, density: float) -> float:
        """Multiplications of a step at this density over those of a dense one: forward, input gradient and weight gradient.

        Only the forward product has a pattern along the axis that it sums over, so only it can skip.
        """
        return (density + 2.0) / 3.0
