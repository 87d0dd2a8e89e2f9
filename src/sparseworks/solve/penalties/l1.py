"""The l1 norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Norm, Step, soft


@PENALTIES.register("l1")
@dataclass(frozen=True)
class L1(Norm):
    """weight * sum_i |z_i|; its proximal map is the soft threshold."""

    complex_valued = True

    weight: float = 1.0

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * sum |z_i|."""
        return self.weight * z.abs().sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """sign(z) (|z| - step * weight)_+."""
        return soft(z, step * self.weight)

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient + weight sign(z)| on the support, (|gradient| - weight)_+ off it."""
        on = (gradient + self.weight * torch.sgn(z)).abs()
        return torch.where(z != 0, on, (gradient.abs() - self.weight).clamp(min=0))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i |gradient_i| / weight."""
        return gradient.abs().amax(-1) / self.weight
