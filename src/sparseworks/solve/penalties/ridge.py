"""Squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Penalty, Step


@PENALTIES.register("ridge")
@dataclass(frozen=True)
class Ridge(Penalty):
    """weight / 2 * sum z_i^2; sets nothing to 0: the baseline that is not sparse."""

    complex_valued = True

    weight: float = 1.0

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight / 2 * |z|^2."""
        return self.weight / 2 * z.abs().square().sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """z / (1 + step * weight)."""
        return z / (1 + step * self.weight)

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient + weight z|."""
        return (gradient + self.weight * z).abs()

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """0 where the gradient is 0, infinite elsewhere."""
        return torch.where(gradient.abs().amax(-1) > 0, torch.inf, 0.0).to(gradient.real.dtype)

    def conjugate(self, v: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """|v|^2 / (2 weight)."""
        return v.abs().square().sum(-1) / (2 * self.weight)
