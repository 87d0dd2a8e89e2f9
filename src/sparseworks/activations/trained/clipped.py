"""Clipped sparse activations, and the weights with which a deep net of them keeps its signal: length maps and initialisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.activations.trained.activation import ACTIVATIONS, Activation
from sparseworks.core.errors import BudgetError, ModelError

_NODES = 64


@ACTIVATIONS.register("clipped_sparse")
@dataclass(frozen=True)
class ClippedSparse(Activation):
    """phi(x) = min(max(x - tau, 0), clip); with `symmetric` sign(x) min(max(|x| - tau, 0), clip). Gradient 1 between tau and tau + clip.

    Of normal x with variance 1 the share Phi(tau) becomes zero, with `symmetric` 2 Phi(tau) - 1.

    Source: Price and Tanner, 2024, arXiv 2402.16184.
    """

    nonlinear: ClassVar[bool] = True

    tau: float = 1.0
    clip: float = 1.0
    symmetric: bool = False

    def __post_init__(self):
        if not (self.tau >= 0 and self.clip > 0):
            raise BudgetError(f"tau is at least 0 and clip above 0, got {self.tau} and {self.clip}.")

    def __call__(self, x: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n"]:
        """phi(x)."""
        if self.symmetric:
            return x.sign() * (x.abs() - self.tau).clamp(0, self.clip)
        return (x - self.tau).clamp(0, self.clip)

    @property
    def sparsity(self) -> float:
        """Share of zeros at the fixed point q = 1."""
        below = NormalDist().cdf(self.tau)
        return 2 * below - 1 if self.symmetric else below

    @property
    def weight_variance(self) -> float:
        """sigma_w^2 = 1 / E[phi'(z)^2]: a gradient keeps its size from layer to layer."""
        inside = NormalDist().cdf(self.tau + self.clip) - NormalDist().cdf(self.tau)
        return 1 / (inside * (2 if self.symmetric else 1))

    @property
    def bias_variance(self) -> float:
        """sigma_b^2 = 1 - sigma_w^2 E[phi(z)^2], so that V(1) = 1."""
        one = torch.ones((), dtype=torch.float64)
        return 1 - self.weight_variance * float(self._second_moment(one))

    def length(self, q: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """V(q) = sigma_w^2 E[phi(sqrt(q) z)^2] + sigma_b^2, z normal: mean square of the next pre-activations; q must be positive.

        By Gauss-Legendre quadrature between the kinks, where the integrand is smooth; in double precision, differentiable.
        """
        return self.weight_variance * self._second_moment(q.double()) + self.bias_variance

    def stability(self, q: float = 1.0) -> tuple[float, float, float]:
        """(V, V', V'') at q. A fixed point is stable where |V'| < 1; where V' = 1 and V'' > 0 whatever lies above it runs away."""
        at = torch.tensor(q, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            v = self.length(at)
            (first,) = torch.autograd.grad(v, at, create_graph=True)
            (second,) = torch.autograd.grad(first, at)
        return float(v.detach()), float(first.detach()), float(second)

    @property
    def slope(self) -> float:
        """V'(1) = 1 - sigma_w^2 clip pdf(tau + clip), with `symmetric` twice the second term."""
        if math.isinf(self.clip):
            return 1.0
        lost = self.weight_variance * self.clip * NormalDist().pdf(self.tau + self.clip)
        return 1 - lost * (2 if self.symmetric else 1)

    def _second_moment(self, q: Tensor) -> Tensor:
        """E[phi(sqrt(q) z)^2]: the slope by quadrature, the clipped tail by the normal distribution function."""
        root = q.sqrt()
        low = self.tau / root
        high = low + min(self.clip, 40.0) / root
        nodes, weights = _legendre(q)
        half = (high - low).unsqueeze(-1) / 2
        z = low.unsqueeze(-1) + half * (1 + nodes)
        density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
        slope = ((root.unsqueeze(-1) * z - self.tau).square() * density * weights).sum(dim=-1) * half.squeeze(-1)
        tail = 0.0 if math.isinf(self.clip) else self.clip**2 * torch.special.ndtr(-high)
        return (slope + tail) * (2 if self.symmetric else 1)


def sparse_init(module: nn.Module, activation: ClippedSparse, *, seed: int = 0) -> nn.Module:
    """W ~ N(0, sigma_w^2 / inputs), b ~ N(0, sigma_b^2) of every linear layer, in place: pre-activations stay at mean square 1.

    The first layer, which sees data and not activations, has W ~ N(0, (1 - sigma_b^2) / inputs): give it inputs of mean square 1.

    Source: Price and Tanner, 2024, arXiv 2402.16184.

    Raises:
        BudgetError: sigma_b^2 < 0 for this activation; the fixed point does not exist.
        ModelError: no linear layers.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ModelError("There are no linear layers to initialise.")
    bias = activation.bias_variance
    if bias < 0:
        raise BudgetError(f"No bias makes {activation} keep the signal (sigma_b^2 = {bias:.3g}); lower the clip.")
    g = torch.Generator().manual_seed(seed)
    for i, layer in enumerate(layers):
        gain = activation.weight_variance if i else 1 - bias
        _normal(layer.weight, math.sqrt(gain / layer.in_features), g)
        if layer.bias is not None:
            _normal(layer.bias, math.sqrt(bias), g)
    return module


@torch.no_grad()
def _normal(parameter: Tensor, std: float, g: torch.Generator) -> None:
    parameter.copy_(torch.randn(parameter.shape, generator=g) * std)


def _legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [-1, 1]: eigenvalues of the Jacobi matrix (Golub and Welsch, 1969)."""
    k = torch.arange(1, _NODES, dtype=torch.float64)
    off = k / (4 * k.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes.to(like), (2 * vectors[0].square()).to(like)
