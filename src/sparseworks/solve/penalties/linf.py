"""The largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Norm, Penalty, Step, project_l1_ball


@PENALTIES.register("linf")
@dataclass(frozen=True)
class LInf(Norm):
    """weight * max_i |z_i|: the anti-sparse norm, which makes coordinates equal in size."""

    separable = False
    complex_valued = True

    weight: float = 1.0

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * max |z|."""
        return self.weight * z.abs().amax(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """z less its projection on the l1 ball of radius step * weight (Moreau)."""
        return z - project_l1_ball(z, step * self.weight)

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """sum |gradient_i| / weight."""
        return gradient.abs().sum(-1) / self.weight


@PENALTIES.register("l1_ball")
@dataclass(frozen=True)
class L1Ball(Penalty):
    """0 where sum |z_i| <= radius, infinite elsewhere: the lasso with a bound in place of a price."""

    separable = False
    complex_valued = True

    radius: float = 1.0

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """0 or infinity; a rounding error beyond the radius is let pass."""
        size = z.abs().sum(-1)
        outside = size > self.radius * (1 + 32 * torch.finfo(size.dtype).eps)
        return torch.zeros_like(size).masked_fill(outside, torch.inf)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """The projection on the ball; the step does not matter."""
        del step
        return project_l1_ball(z, self.radius)

    def conjugate(self, v: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """radius * max |v|."""
        return self.radius * v.abs().amax(-1)
