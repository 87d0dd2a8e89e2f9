"""Bounds on every coordinate, with or without an l1 norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Norm, Penalty, Step


@PENALTIES.register("non_negative_l1")
@dataclass(frozen=True)
class NonNegativeL1(Norm):
    """weight * sum z_i where all z_i >= 0, infinite elsewhere; weight 0 is the constraint alone."""

    weight: float = 1.0

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * sum z, infinite where a coordinate is negative."""
        return (self.weight * z.sum(-1)).masked_fill((z < 0).any(-1), torch.inf)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """(z - step * weight)_+."""
        return (z - step * self.weight).clamp(min=0)

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient + weight| on the support, (-gradient - weight)_+ off it."""
        slope = gradient + self.weight
        return torch.where(z > 0, slope.abs(), (-slope).clamp(min=0))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i (-gradient_i)_+ / weight."""
        size = (-gradient).clamp(min=0)
        return torch.where(size > 0, size / self.weight, 0).amax(-1)


@PENALTIES.register("box")
@dataclass(frozen=True)
class Box(Penalty):
    """0 where low <= z_i <= high for all i, infinite elsewhere."""

    low: float = 0.0
    high: float = 1.0

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """0 or infinity."""
        outside = ((z < self.low) | (z > self.high)).any(-1)
        return torch.zeros_like(z[..., 0]).masked_fill(outside, torch.inf)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """z, clamped; the step does not matter."""
        del step
        return z.clamp(self.low, self.high)

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient| inside; at a bound only the part that points inwards."""
        inward = torch.where(z <= self.low, -gradient, gradient)
        return torch.where((z > self.low) & (z < self.high), gradient.abs(), inward.clamp(min=0))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """No factor of an indicator matters.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("A box has no factor from which on 0 is optimal.")

    def conjugate(self, v: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """sum max(low v_i, high v_i)."""
        return torch.maximum(self.low * v, self.high * v).sum(-1)
