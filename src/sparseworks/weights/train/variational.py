"""Variational dropout: every weight learns its own noise, and the noisiest are dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ModelError
from sparseworks.core.regime import REGIMES, Regime, Training

LIMIT = 10.0


@REGIMES.register("variational")
@dataclass(frozen=True)
class Variational(Regime):
    """w ~ N(W, exp(S)), S learned; the loss gains KL / `examples`; at the end entries with log a = S - log W^2 >= `threshold` go.

    In training mode layers add noise to their outputs (local reparametrisation): sqrt(x^2 exp(S)) e. `threshold` None keeps
    the method's budget instead, the entries of least log a.

    Source: Molchanov, Ashukha and Vetrov, 2017, arXiv 1701.05369.

    Attributes:
        examples: size of the training set, which the mean loss is to be multiplied with.
        first: S at the beginning.
        warmup: share of the run over which the KL term rises from 0 linearly.
    """

    threshold: float | None = 3.0
    examples: int = 1000
    first: float = -8.0
    warmup: float = 0.0
    timed = True

    @property
    def emergent(self) -> bool:  # type: ignore[override]
        """The threshold decides, if there is one."""
        return self.threshold is not None

    def attach(self, run: Training) -> None:
        """Noise on every layer."""
        for site in run.sites:
            layer = run.model.get_submodule(site.site.module)
            if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) or site.site.size != site.parameter.numel():
                raise ModelError(f"Site {site.name!r} is not a whole Linear or Conv layer; leave it out with `skip`.")
        for site in run.sites:
            run.learn(site, "log_variance", torch.full_like(site.parameter, self.first))
            layer = run.model.get_submodule(site.site.module)
            run.at_end(layer.register_forward_hook(_noise(site.learned["log_variance"])).remove)

    def before(self, run: Training) -> None:
        """Add the gradients of the KL term."""
        scale = min(run.progress / self.warmup, 1.0) if self.warmup else 1.0
        for site in run.sites:
            with torch.enable_grad():
                weight, noise = site.weight().clone().requires_grad_(), site.learned["log_variance"]
                loss = divergence(log_alpha(weight, site.site.view(noise))).sum() * scale / self.examples
                of_weight, of_noise = torch.autograd.grad(loss, [weight, noise])
            site.set_gradient(site.gradient() + of_weight)
            noise.grad = of_noise if noise.grad is None else noise.grad + of_noise

    def end(self, run: Training) -> None:
        """Drop the noisiest."""
        ratios = {s.name: log_alpha(s.weight(), s.site.view(s.learned["log_variance"].detach())) for s in run.sites}
        if self.threshold is None:
            run.keep(run.choose({name: -ratio for name, ratio in ratios.items()}, run.counts()))
        else:
            run.keep({name: ratio < self.threshold for name, ratio in ratios.items()})


def log_alpha(
    weight: Float[Tensor, "rows cols"], log_variance: Float[Tensor, "rows cols"]
) -> Float[Tensor, "rows cols"]:
    """log variance - log weight^2, within +-10."""
    return (log_variance - (weight.square() + 1e-16).log()).clamp(-LIMIT, LIMIT)


def divergence(log_a: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
    """KL to the log-uniform prior, approximately: k1 - k1 sigmoid(k2 + k3 log a) + log(1 + 1 / a) / 2 (Molchanov et al., 2017)."""
    return 0.63576 - 0.63576 * (1.87320 + 1.48695 * log_a).sigmoid() + 0.5 * F.softplus(-log_a)


def _noise(log_variance: nn.Parameter) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
    def add(layer: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not layer.training:
            return None
        squared, variance = args[0].square(), log_variance.exp()
        if isinstance(layer, nn.Linear):
            spread = F.linear(squared, variance)
        else:
            assert isinstance(layer, nn.Conv1d | nn.Conv2d)
            spread = layer._conv_forward(squared, variance, None)  # type: ignore[arg-type]
        return output + (spread + 1e-12).sqrt() * torch.randn_like(output)

    return add
