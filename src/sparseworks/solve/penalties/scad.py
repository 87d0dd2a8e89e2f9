"""Smoothly clipped absolute deviation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Penalty, Step


@PENALTIES.register("scad")
@dataclass(frozen=True)
class SCAD(Penalty):
    """sum_i: weight |z| up to weight, a quadratic up to gamma * weight, weight^2 (gamma + 1) / 2 from there on.

    Attributes:
        gamma: > 2; 3.7 is the authors'.

    Source: Fan and Li, 2001.
    """

    convex = False

    weight: float = 1.0
    gamma: float = 3.7

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """The three pieces, summed."""
        return self._each(z.abs()).sum(-1)

    def _each(self, size: Tensor) -> Tensor:
        w, a = self.weight, self.gamma
        middle = (2 * a * w * size - size.square() - w**2) / (2 * (a - 1))
        return torch.where(size <= w, w * size, torch.where(size <= a * w, middle, w**2 * (a + 1) / 2))

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """The best of the three pieces' minimisers; of equal ones the smallest."""
        size, w, a = z.abs(), self.weight, self.gamma
        step = torch.as_tensor(step, dtype=z.dtype, device=z.device)
        low = (size - step * w).clamp(0, w)
        bend = a - 1 - step
        inner = ((a - 1) * size - step * a * w) / torch.where(bend > 0, bend, 1)
        middle = torch.where(bend > 0, inner, w).clamp(w, a * w)
        high = size.clamp(min=a * w)
        at = torch.where(size <= (1 + step) * w, low, torch.where(size <= a * w, middle, high))
        # Beyond this step the pieces' minimisers compete, and their values decide.
        found = torch.stack([low, middle, high])
        cost = (found - size).square() / 2 + step * self._each(found)
        best = found.gather(0, cost.argmin(0, keepdim=True))[0]
        return torch.sign(z) * torch.where(bend > 0, at, best)

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient + sign(z) g'(|z|)| on the support, (|gradient| - weight)_+ off it."""
        slope = ((self.gamma * self.weight - z.abs()) / (self.gamma - 1)).clamp(0, self.weight)
        on = (gradient + slope * torch.sgn(z)).abs()
        return torch.where(z != 0, on, (gradient.abs() - self.weight).clamp(min=0))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i |gradient_i| / weight: from there on 0 is stationary."""
        return gradient.abs().amax(-1) / self.weight
