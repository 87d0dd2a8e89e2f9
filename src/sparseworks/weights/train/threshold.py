"""Gradient annealing: dropped weights keep a share of their gradient that goes to zero (AutoSparse)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.regime import REGIMES, Trained, Training
from sparseworks.weights.train.straight import Straight


@REGIMES.register("annealed")
@dataclass(frozen=True)
class Annealed(Straight):
    """Straight-through on the method's support, chosen anew every step; what is dropped gets a_t times its gradient.

    a_t is the method's schedule over the first `stop` of the run, then 0. Source: Kundu et al., 2023, arXiv 2304.06941
    (AutoSparse at a fixed budget).
    """

    stop: float = 0.75
    timed = True

    def share(self, run: Training) -> float:
        """a_t."""
        return run.method.schedule(run.progress / self.stop) if run.progress < self.stop else 0.0

    def before(self, run: Training) -> None:
        """Scale the gradients of dropped weights."""
        share = self.share(run)
        for site in run.sites:
            site.set_gradient(site.gradient() * (site.mask + ~site.mask * share))


@REGIMES.register("learned_threshold")
@dataclass(frozen=True)
class LearnedThreshold(Annealed):
    """The model computes with sign(W) relu(|W| - sigmoid(T)), T learned for each site; how much is kept follows from training.

    Below the threshold both W and T get a_t times the gradient. The optimiser trains T as it trains W, with the same weight
    decay, which pulls T towards 0 and so the threshold up: what drives the sparsity.

    Source: Kundu et al., 2023, arXiv 2304.06941 (AutoSparse), after Kusupati et al., 2020, arXiv 2002.03231 (STR).

    Attributes:
        first: T at the beginning.
    """

    first: float = -5.0
    emergent = True

    def attach(self, run: Training) -> None:
        """A low threshold."""
        for site in run.sites:
            run.learn(
                site, "threshold", torch.full((1,), self.first, dtype=site.parameter.dtype, device=site.mask.device)
            )

    def before(self, run: Training) -> None:
        """Gradients of W and T, of that of the thresholded weight."""
        share = self.share(run)
        for site in run.sites:
            passed = site.gradient() * (site.mask + ~site.mask * share)
            level = site.learned["threshold"].sigmoid()
            site.learned["threshold"].grad = -(passed * site.weight().sign()).sum().reshape(1) * level * (1 - level)
            site.set_gradient(passed)

    def project(self, run: Training, site: Trained) -> Float[Tensor, "rows cols"]:
        """sign(W) relu(|W| - sigmoid(T))."""
        return site.weight().sign() * (site.weight().abs() - self._level(site)).clamp(min=0)

    def change(self, run: Training) -> None:
        """What lies above the threshold."""
        run.keep({s.name: s.weight().abs() > self._level(s) for s in run.sites})

    def end(self, run: Training) -> None:
        """The thresholded weights are the weights."""
        self.change(run)
        for site in run.sites:
            site.put(self.project(run, site))

    def _level(self, site: Trained) -> Float[Tensor, "1"]:
        return site.learned["threshold"].detach().sigmoid()
