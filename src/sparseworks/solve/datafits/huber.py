"""Squares near 0, magnitudes beyond."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.datafit import DATAFITS, Datafit


@DATAFITS.register("huber")
@dataclass(frozen=True)
class Huber(Datafit):
    """sum_i h(u_i - y_i), h(r) = r^2 / 2 up to |r| = delta, delta |r| - delta^2 / 2 beyond: outliers pull with delta at most.

    Source: Huber, 1964.
    """

    curvature = 1.0

    delta: float = 1.0

    def value(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """sum h(u - y)."""
        size = (u - y).abs()
        near = size.clamp(max=self.delta)
        return (near.square() / 2 + self.delta * (size - near)).sum(-1)

    def gradient(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """u - y, cut at delta."""
        return (u - y).clamp(-self.delta, self.delta)

    def bend(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """min(1, delta / |u - y|): the parabola through u that lies above, since the second derivative is 0 beyond delta."""
        return self.delta / (u - y).abs().clamp(min=self.delta)

    def conjugate(self, v: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """sum v^2 / 2 + v y where no |v| exceeds delta."""
        beyond = (v.abs() > self.delta * (1 + 8 * torch.finfo(v.dtype).eps)).any(-1)
        return (v.square() / 2 + v * y).sum(-1).masked_fill(beyond, torch.inf)

    def prox(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"], step: float) -> Float[Tensor, "*rows m"]:
        """y + r / (1 + step) for |r| <= delta (1 + step), r = u - y; beyond, u moves by step * delta."""
        r = u - y
        return u - step * (r / (1 + step)).clamp(-self.delta, self.delta)
