"""The sum of logarithms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Penalty, Step


@PENALTIES.register("log_sum")
@dataclass(frozen=True)
class LogSum(Penalty):
    """weight * epsilon * sum_i log(1 + |z_i| / epsilon): slope `weight` at 0, as 1 / |z| beyond; the l1 norm for epsilon = infinity.

    Source: Candes, Wakin and Boyd, 2008 (arXiv 0711.1612).
    """

    convex = False

    weight: float = 1.0
    epsilon: float = 0.5

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * epsilon * sum log(1 + |z| / epsilon)."""
        return self.weight * self.epsilon * torch.log1p(z.abs() / self.epsilon).sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """The larger root of (u - |z|)(u + epsilon) + step weight epsilon = 0, if that is better than 0."""
        size, e = z.abs(), self.epsilon
        scale = step * self.weight * e
        inside = (size + e).square() - 4 * scale
        root = ((size - e + inside.clamp(min=0).sqrt()) / 2).clamp(min=0)
        gain = size.square() / 2 - (root - size).square() / 2 - scale * torch.log1p(root / e)
        return torch.sign(z) * torch.where((inside > 0) & (gain > 0), root, 0)

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient + sign(z) weight epsilon / (|z| + epsilon)| on the support, (|gradient| - weight)_+ off it."""
        slope = self.weight * self.epsilon / (z.abs() + self.epsilon)
        on = (gradient + slope * torch.sgn(z)).abs()
        return torch.where(z != 0, on, (gradient.abs() - self.weight).clamp(min=0))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i |gradient_i| / weight: from there on 0 is stationary."""
        return gradient.abs().amax(-1) / self.weight
