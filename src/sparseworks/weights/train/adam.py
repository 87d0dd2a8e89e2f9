"""Decay of dropped weights inside Adam, as a hook after any optimiser that keeps Adam's moments: AST and CAST."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import ModelError
from sparseworks.core.regime import REGIMES, Trained, Training
from sparseworks.weights.train.slot import group_of, local, local_like, whole
from sparseworks.weights.train.straight import Straight


@dataclass(frozen=True)
class Moments:
    """What an optimiser of Adam's kind remembers of one site: m, v and the step they belong to."""

    average: Float[Tensor, "rows cols"]
    square: Float[Tensor, "rows cols"]
    lr: float
    beta1: float
    beta2: float
    eps: float
    step: int

    def update(self, x: Float[Tensor, "rows cols"], square: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """lr x / (1 - beta1^t) / (sqrt(square / (1 - beta2^t)) + eps)."""
        root = (square / (1 - self.beta2**self.step)).sqrt()
        return self.lr / (1 - self.beta1**self.step) * x / (root + self.eps)


def moments_of(run: Training, site: Trained) -> Moments:
    """The moments of a site after a step.

    Raises:
        ModelError: the optimiser is not of Adam's kind.
    """
    state, group = run.optimizer.state.get(site.parameter, {}), group_of(run.optimizer, site.parameter)
    if not {"exp_avg", "exp_avg_sq", "step"} <= set(state) or not {"betas", "eps"} <= set(group):
        raise ModelError(
            f"Method {run.method.name!r} decays weights inside Adam, and {type(run.optimizer).__name__} keeps no first and "
            f"second moments of {site.name!r}: use Adam or AdamW."
        )
    average, square = (site.site.view(whole(state[k])) for k in ("exp_avg", "exp_avg_sq"))
    (beta1, beta2), step = group["betas"], int(state["step"])
    return Moments(average, square, float(group["lr"]), float(beta1), float(beta2), float(group["eps"]), step)


def store_square(run: Training, site: Trained, square: Float[Tensor, "rows cols"]) -> None:
    """Replace the second moment of a site."""
    held = run.optimizer.state[site.parameter]["exp_avg_sq"]
    tensor = whole(held)
    site.site.put(tensor, square)
    if tensor is not held:
        local(held).copy_(local_like(tensor, held))


@REGIMES.register("adam_decay")
@dataclass(frozen=True)
class AdamDecay(Straight):
    """Straight-through, with Adam's step lr (m + d) / (sqrt(v) + eps), d = decay_t (1 - M) W, v the mean of (m + d)^2.

    m is the mean of the loss gradient alone, and decay_t rises linearly from 0 to `decay` over the first `ramp` of the run.
    Exact for Adam and AdamW (not `amsgrad`); the step that the optimiser took is taken back and made anew.

    Source: Huang et al., 2024, arXiv 2407.20584 (AST). As in their code, v holds the square of m + d and not of the
    gradient, so steps are long before m has settled: warm the learning rate up.
    """

    decay: float = 6e-5
    every: int = 10
    ramp: float = 0.25
    timed = True

    def before(self, run: Training) -> None:
        """Nothing: the decay is kept out of the gradient."""

    def after(self, run: Training) -> None:
        """Make the step of every site anew."""
        for site in run.sites:
            self._step(site, moments_of(run, site), self.strength(run), run)

    def strength(self, run: Training) -> float:
        """decay_t."""
        return self.decay * min(run.progress / max(self.ramp, 1e-9), 1.0)

    def _step(self, site: Trained, adam: Moments, decay: float, run: Training) -> None:
        weight = site.weight() + adam.update(adam.average, adam.square)
        wanted = adam.average + decay * weight * ~site.mask
        change = (1 - adam.beta2) * (wanted.square() - site.gradient().square())
        square = (adam.square + change).clamp(min=0)
        site.put(weight - adam.update(wanted, square))
        store_square(run, site, square)


@REGIMES.register("adam_shrink")
@dataclass(frozen=True)
class AdamShrink(AdamDecay):
    """y = x (s W)^T with all of W, and Adam's step lr u / (sqrt(v) + eps), u = (1 - a) m + a decay sign(W) where W is dropped.

    u = m where it is kept, v is the mean of u^2, m that of the loss gradient alone, and a = t / T rises over the whole run.
    Adam divides by what the decay itself adds to v: once (1 - a) m has fallen below a decay, dropped weights go to zero at the
    learning rate and stay within that rate of it. The smaller the decay, the later, and the more is left to the last cut. s is a learned scale of each of `groups` equal parts of a row; it begins
    at 1, is trained by the optimiser beside W and folded into it after the last cut: it makes good what the decay takes from
    the outputs, and being common to a group it changes no choice.

    Exact for Adam and AdamW (not `amsgrad`); the step that the optimiser took is taken back and made anew.

    Source: Huang, Hu, Zhu and Chen, 2025, arXiv 2509.25996 (CAST: Algorithm 1, decay 4e-7 and 2 groups for LLaMA-2-7B).

    Attributes:
        decay: against the mean gradient: the larger, the earlier dropped weights are pulled to zero.
        groups: scales of a row; one where groups of the pattern would be cut through, and 0 for none.
    """

    decay: float = 4e-7
    groups: int = 2

    def attach(self, run: Training) -> None:
        """Scales of 1."""
        for site in run.sites if self.groups else ():
            ones = torch.ones(site.shape[0], self._parts(run, site), dtype=site.parameter.dtype)
            run.learn(site, "scale", ones.to(site.mask.device))

    def before(self, run: Training) -> None:
        """Gradients of the scale and of W, of that of s W."""
        for site in run.sites if self.groups else ():
            gradient, scale = site.gradient(), site.learned["scale"]
            scale.grad = (gradient * site.weight()).unflatten(1, (scale.shape[1], -1)).sum(dim=2)
            site.set_gradient(gradient * self._spread(site))

    def project(self, run: Training, site: Trained) -> Float[Tensor, "rows cols"]:
        """s W, of all entries."""
        return site.weight() * self._spread(site) if self.groups else site.weight()

    def end(self, run: Training) -> None:
        """Choose for good, then fold the scales."""
        super().end(run)
        for site in run.sites:
            site.put(self.project(run, site))

    def macs(self, density: float) -> float:
        """All: nothing is left out until the end."""
        return 1.0

    def strength(self, run: Training) -> float:
        """a."""
        return run.progress

    def _step(self, site: Trained, adam: Moments, decay: float, run: Training) -> None:
        weight = site.weight() + adam.update(adam.average, adam.square)
        pulled = (1 - decay) * adam.average + decay * self.decay * weight.sign()
        wanted = torch.where(site.mask, adam.average, pulled)
        # A mean of its own: squares of gradients are so much larger that they could not be taken out of the optimiser's again.
        # With an optimiser that has stepped before, as if u had been of this size all the while.
        seen = site.state.get("square", (1 - adam.beta2 ** (adam.step - 1)) * wanted.square())
        site.state["square"] = square = adam.beta2 * seen + (1 - adam.beta2) * wanted.square()
        site.put(weight - adam.update(wanted, square))

    def _parts(self, run: Training, site: Trained) -> int:
        group = run.method.pattern.group.cols or site.shape[1]
        return self.groups if site.shape[1] % (self.groups * group) == 0 else 1

    def _spread(self, site: Trained) -> Float[Tensor, "rows cols"]:
        scale = site.learned["scale"].detach()
        return scale.repeat_interleave(site.shape[1] // scale.shape[1], dim=1)
