"""Soft ways to zero: dense weights whose smallest are shrunk or penalised, new ones every step, until they are cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparseworks.core.regime import REGIMES, Regime, Training
from sparseworks.weights.train.alternate import full


@REGIMES.register("soft_shrink")
@dataclass(frozen=True)
class SoftShrink(Regime):
    """After every step the weights that the method would drop are multiplied by `factor`; at `stop` they are dropped for good.

    The choice is new at each step, so weights return while their gradient is stronger than the shrinkage. factor = 0 is
    iterative hard thresholding.

    Source: Wang, Wang, Lin and Fu, 2023, arXiv 2303.09650 (ISS-P; 0.95 in the paper, 0.99 in the code's options).

    Attributes:
        stop: share of the run after which the support is held.
    """

    factor: float = 0.95
    stop: float = 0.5
    timed = True

    def after(self, run: Training) -> None:
        """Shrink the losers."""
        if full(run):
            for name, mask in run.choose(run.scores(), run.counts()).items():
                site = next(s for s in run.sites if s.name == name)
                site.put(torch.where(mask, site.weight(), self.factor * site.weight()))

    def due(self, run: Training) -> bool:
        """Once, at `stop`."""
        return run.progress >= self.stop and full(run)

    def change(self, run: Training) -> None:
        """Cut."""
        run.keep(run.choose(run.scores(), run.counts()))

    def end(self, run: Training) -> None:
        """Cut, if the run was too short."""
        if full(run):
            self.change(run)


@REGIMES.register("growing_l2")
@dataclass(frozen=True)
class GrowingL2(SoftShrink):
    """Instead of a factor an L2 penalty: every `every` steps those that would be dropped gain `step`, up to `limit`.

    The penalty stays where it was gained. Source: as `SoftShrink`; after Wang, Qin, Zhang and Fu, 2021, arXiv 2012.09243 (GReg).
    """

    step: float = 1e-4
    every: int = 20
    limit: float = 0.5

    def before(self, run: Training) -> None:
        """Add the gradient of the penalty, pressure * W."""
        if not full(run):
            return
        if run.done % self.every == 0:
            for name, mask in run.choose(run.scores(), run.counts()).items():
                site = next(s for s in run.sites if s.name == name)
                pressure = site.state.setdefault("pressure", torch.zeros_like(site.weight()))
                site.state["pressure"] = torch.where(mask, pressure, (pressure + self.step).clamp(max=self.limit))
        for site in run.sites:
            site.set_gradient(site.gradient() + site.state["pressure"] * site.weight())

    def after(self, run: Training) -> None:
        """Nothing: the optimiser shrinks."""
