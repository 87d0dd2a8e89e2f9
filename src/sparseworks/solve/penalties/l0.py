"""The number of entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Penalty, Step


@PENALTIES.register("l0")
@dataclass(frozen=True)
class L0(Penalty):
    """weight * number of entries that are not 0; its proximal map is the hard threshold."""

    convex = False
    complex_valued = True

    weight: float = 1.0

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * ||z||_0."""
        return self.weight * (z != 0).sum(-1).to(z.abs().dtype)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """z where |z|^2 > 2 step weight, else 0."""
        return torch.where(z.abs().square() > 2 * self.weight * step, z, torch.zeros_like(z))

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient| on the support, 0 off it: every support is a local minimum once its values are fitted."""
        size = gradient.abs()
        return torch.where(z != 0, size, torch.zeros_like(size))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i |gradient_i|^2 / (2 weight): from here on a proximal step of 1 (or less) stays at 0."""
        return gradient.abs().square().amax(-1) / (2 * self.weight)
