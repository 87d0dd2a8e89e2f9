"""The l1 norm and a ridge together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Penalty, Step, soft


@PENALTIES.register("elastic_net")
@dataclass(frozen=True)
class ElasticNet(Penalty):
    """weight * (share * sum |z_i| + (1 - share) / 2 * sum z_i^2).

    Attributes:
        share: of the l1 norm, in (0, 1]; 1 is the lasso.

    Source: Zou and Hastie, 2005.
    """

    weight: float = 1.0
    share: float = 0.5

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * (share |z|_1 + (1 - share) / 2 |z|^2)."""
        return self.weight * (self.share * z.abs().sum(-1) + (1 - self.share) / 2 * z.square().sum(-1))

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """soft(z, step * weight * share) / (1 + step * weight * (1 - share))."""
        return soft(z, step * self.weight * self.share) / (1 + step * self.weight * (1 - self.share))

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """That of the l1 norm, with the ridge's gradient added."""
        gradient, l1 = gradient + self.weight * (1 - self.share) * z, self.weight * self.share
        return torch.where(z != 0, (gradient + l1 * torch.sgn(z)).abs(), (gradient.abs() - l1).clamp(min=0))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i |gradient_i| / (weight * share)."""
        return gradient.abs().amax(-1) / (self.weight * self.share)

    def conjugate(self, v: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """sum (|v_i| - weight * share)_+^2 / (2 weight (1 - share)); at share = 1 that of the l1 norm."""
        beyond = (v.abs() - self.weight * self.share).clamp(min=0)
        if self.share < 1:
            return beyond.square().sum(-1) / (2 * self.weight * (1 - self.share))
        outside = beyond.amax(-1) > 32 * torch.finfo(v.dtype).eps * self.weight
        return torch.zeros_like(beyond[..., 0]).masked_fill(outside, torch.inf)
