"""The minimax concave penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Penalty, Step, soft


@PENALTIES.register("mcp")
@dataclass(frozen=True)
class MCP(Penalty):
    """sum_i weight |z_i| - z_i^2 / (2 gamma) up to |z_i| = gamma * weight, gamma * weight^2 / 2 from there on.

    Slope `weight` at 0, none at large values: sparse without the shrinkage of the l1 norm, which is gamma = infinity.

    Attributes:
        gamma: > 0; the penalised problem in one coordinate with curvature L stays convex for gamma > 1 / L.

    Source: Zhang, 2010 (arXiv 1002.4734).
    """

    convex = False

    weight: float = 1.0
    gamma: float = 3.0

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """sum weight * min(|z|, gamma weight) - min(|z|, gamma weight)^2 / (2 gamma)."""
        size = z.abs().clamp(max=self.gamma * self.weight)
        return (self.weight * size - size.square() / (2 * self.gamma)).sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """soft(z, step weight) / (1 - step / gamma) up to gamma weight, z beyond; a hard threshold where step >= gamma."""
        step = torch.as_tensor(step, dtype=z.dtype, device=z.device)
        firm = soft(z, step * self.weight) / (1 - step / self.gamma).clamp(min=torch.finfo(z.dtype).tiny)
        firm = torch.where(z.abs() > self.gamma * self.weight, z, firm)
        hard = torch.where(z.abs() > (step * self.gamma).sqrt() * self.weight, z, 0)
        return torch.where(step < self.gamma, firm, hard)

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient + sign(z) (weight - |z| / gamma)_+| on the support, (|gradient| - weight)_+ off it."""
        slope = (self.weight - z.abs() / self.gamma).clamp(min=0)
        on = (gradient + slope * torch.sgn(z)).abs()
        return torch.where(z != 0, on, (gradient.abs() - self.weight).clamp(min=0))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i |gradient_i| / weight: from there on 0 is stationary."""
        return gradient.abs().amax(-1) / self.weight
