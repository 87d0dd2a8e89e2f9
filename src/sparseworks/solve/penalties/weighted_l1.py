"""The l1 norm with a weight for every coordinate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Norm, Step, soft


@PENALTIES.register("weighted_l1")
@dataclass(frozen=True)
class WeightedL1(Norm):
    """weight * sum_i weights_i |z_i|; the adaptive lasso, and what reweighting solves each round.

    Attributes:
        weights: one a coordinate, >= 0; 0 leaves a coordinate free.
    """

    complex_valued = True

    weights: tuple[float, ...]
    weight: float = 1.0

    @classmethod
    def example(cls) -> WeightedL1:
        """Six coordinates."""
        return cls((1.0, 0.5, 2.0, 1.0, 0.1, 1.5), 0.7)

    def each(self, like: Tensor) -> Float[Tensor, " n"]:
        """weight * weights, as a tensor beside `like`."""
        return self.weight * torch.tensor(self.weights, dtype=like.real.dtype, device=like.device)

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * sum weights_i |z_i|."""
        return (self.each(z) * z.abs()).sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """sign(z_i) (|z_i| - step * weight * weights_i)_+."""
        return soft(z, step * self.each(z))

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient + w_i sign(z)| on the support, (|gradient| - w_i)_+ off it."""
        each = self.each(z)
        return torch.where(z != 0, (gradient + each * torch.sgn(z)).abs(), (gradient.abs() - each).clamp(min=0))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i |gradient_i| / w_i; infinite where a free coordinate has a gradient."""
        size = gradient.abs()
        return torch.where(size > 0, size / self.each(gradient), 0).amax(-1)
