"""The l_1/2 quasi-norm."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Penalty, Step

_EDGE = 54 ** (1 / 3) / 4


@PENALTIES.register("half")
@dataclass(frozen=True)
class Half(Penalty):
    """weight * sum_i sqrt(|z_i|); its proximal map is the half threshold.

    Source: Xu, Chang, Xu and Zhang, 2012 (L1/2 regularization: a thresholding representation theory).
    """

    convex = False
    complex_valued = True

    weight: float = 1.0

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * sum sqrt(|z_i|)."""
        return self.weight * z.abs().sqrt().sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """(2/3) z (1 + cos(2 pi / 3 - (2/3) arccos((l / 8) (|z| / 3)^(-3/2)))) where |z| > (54^(1/3) / 4) l^(2/3), l = 2 step weight; else 0."""
        size = z.abs()
        level = torch.as_tensor(2 * self.weight * step, dtype=size.dtype, device=z.device)
        kept = size > _EDGE * level ** (2 / 3)
        # Off the support the arccos has no value; there any size above the edge will do.
        safe = torch.where(kept, size, torch.ones_like(size))
        angle = torch.acos((torch.where(kept, level, 0.0) / 8) * (safe / 3) ** -1.5)
        return torch.where(kept, 2 / 3 * z * (1 + torch.cos(2 * pi / 3 - 2 / 3 * angle)), torch.zeros_like(z))

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient + weight sign(z) / (2 sqrt(|z|))| on the support, 0 off it: the slope at 0 is infinite."""
        size = z.abs()
        on = (
            gradient + self.weight * torch.sgn(z) / (2 * torch.where(z != 0, size, torch.ones_like(size)).sqrt())
        ).abs()
        return torch.where(z != 0, on, torch.zeros_like(on))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i (4 |gradient_i| / 54^(1/3))^(3/2) / (2 weight): from here on a proximal step of 1 (or less) stays at 0."""
        return (gradient.abs().amax(-1) / _EDGE) ** 1.5 / (2 * self.weight)
