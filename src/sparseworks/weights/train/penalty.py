"""Penalties that grow with the epochs, and the moment when a pruned copy is as good as the dense model was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.regime import REGIMES, Regime, Training
from sparseworks.core.support import Support
from sparseworks.weights.train.sparsifier import Sparsifier

STEEPEST = 0.6585
"""artanh(1 / sqrt(3)): where the curvature of tanh is largest."""


@REGIMES.register("penalised")
@dataclass(frozen=True)
class Penalised(Regime):
    """Adds rate * growth^e times the gradient of a penalty, e the epochs since `warmup`; the support is chosen at the end.

    `hyper_sparse`: sign(w) s / cosh^2(s |w|) * sum |w| / sum tanh(s |w|), s = 0.6585 / |w|_k with |w|_k the largest magnitude
    that the budget drops, sums over all sites: weights below it are pushed hard, weights above it hardly. `l1`: sign(w).
    `l2`: w.

    Source: Glandorf, Kaiser and Rosenhahn, 2023, arXiv 2308.07163 (HyperSparse; rate, growth and warm-up theirs).

    Attributes:
        epoch: steps of an epoch.
        warmup: epochs without the penalty.
    """

    kind: Literal["hyper_sparse", "l1", "l2"] = "hyper_sparse"
    rate: float = 5e-6
    growth: float = 1.05
    epoch: int = 100
    warmup: int = 60

    def begin(self, run: Training) -> None:
        """Know the kind."""
        if self.kind not in ("hyper_sparse", "l1", "l2"):
            raise BudgetError(f'A penalty is "hyper_sparse", "l1" or "l2", got {self.kind!r}.')

    def strength(self, run: Training) -> float:
        """rate * growth^e, 0 during the warm-up."""
        e = run.done // self.epoch - self.warmup
        return self.rate * self.growth**e if e >= 0 else 0.0

    def before(self, run: Training) -> None:
        """Add the gradient of the penalty."""
        strength = self.strength(run)
        if strength == 0.0:
            return
        weights = [s.weight() for s in run.sites]
        if self.kind == "hyper_sparse":
            kept = sum(int(c.sum()) for c in run.counts().values())
            pulls = hyper_sparse(weights, sum(w.numel() for w in weights) - kept)
        else:
            pulls = [w.sign() if self.kind == "l1" else w for w in weights]
        for site, pull in zip(run.sites, pulls, strict=True):
            site.set_gradient(site.gradient() + strength * pull)

    def end(self, run: Training) -> None:
        """The method's support of the weights as they are."""
        run.keep(run.choose(run.scores(), run.counts()))


def hyper_sparse(weights: list[Float[Tensor, "rows cols"]], dropped: int) -> list[Float[Tensor, "rows cols"]]:
    """Gradient of sum |w| * sum tanh(s |w|) / const(sum tanh(s |w|)) - sum |w|, s = 0.6585 over the magnitude at rank `dropped`."""
    sizes = torch.cat([w.abs().flatten() for w in weights])
    cut = sizes.kthvalue(min(dropped + 1, sizes.numel())).values.clamp(min=1e-12)
    s = STEEPEST / cut
    share = s * sizes.sum() / (s * sizes).tanh().sum()
    return [w.sign() * share / (s * w.abs()).clamp(max=40.0).cosh().square() for w in weights]


class RipeStop:
    """Says, epoch by epoch, when training with a penalty has done its work, and keeps the pruned model of that moment.

    Each epoch a copy is pruned by the method and evaluated. When the mean over a window of three epochs exceeds `target`, what
    the dense model reached before the penalty, training is over; the copy in the middle of the best window is the result,
    to be fine-tuned with its support held (`keep_support`).

    Source: Glandorf, Kaiser and Rosenhahn, 2023, arXiv 2308.07163 (ART).

    Attributes:
        model, supports: the best so far, after three epochs.
        value: mean of its window.
    """

    def __init__(self, run: Sparsifier, evaluate: Callable[[nn.Module], float], target: float, window: int = 3):
        if window < 1 or window % 2 == 0:
            raise BudgetError(f"A window has a middle if it is odd, got {window}.")
        self._run, self._evaluate, self._target, self._window = run, evaluate, target, window
        self._seen: list[tuple[float, nn.Module, dict[str, Support]]] = []
        self._best: tuple[nn.Module, dict[str, Support]] | None = None
        self.value = -float("inf")

    def epoch(self) -> bool:
        """Call after every epoch with the penalty; True when training is over."""
        model, supports = self._pruned()
        self._seen = [*self._seen, (self._evaluate(model), model, supports)][-self._window :]
        mean = sum(value for value, _, _ in self._seen) / len(self._seen)
        if len(self._seen) == self._window and mean > self.value:
            self.value = mean
            self._best = self._seen[self._window // 2][1:]
        return self.value > self._target

    @property
    def model(self) -> nn.Module:
        """The best pruned copy.

        Raises:
            ModelError: fewer epochs than a window holds.
        """
        return self._found()[0]

    @property
    def supports(self) -> dict[str, Support]:
        """Its supports."""
        return self._found()[1]

    def _found(self) -> tuple[nn.Module, dict[str, Support]]:
        if self._best is None:
            raise ModelError(f"There is no result before {self._window} epochs.")
        return self._best

    @torch.no_grad()
    def _pruned(self) -> tuple[nn.Module, dict[str, Support]]:
        masks = self._run.choose(self._run.scores(), self._run.counts())
        model = copy.deepcopy(self._run.model)
        for place in self._run.sites:
            place.site.write(model, place.weight() * masks[place.name])
        return model, {name: Support.from_mask(mask) for name, mask in masks.items()}
