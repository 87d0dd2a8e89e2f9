"""The continuous exact relaxation of the number of entries."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Penalty, Step


@PENALTIES.register("cel0")
@dataclass(frozen=True)
class CEL0(Penalty):
    """sum_i w - (a^2 / 2) (|z_i| - sqrt(2 w) / a)^2 where |z_i| <= sqrt(2 w) / a, else w; w the weight, a the norm of the atoms.

    With least squares it has the global minima of w ||z||_0 and fewer local ones.

    Source: Soubies, Blanc-Feraud and Aubert, 2015 (SIAM J. Imaging Sciences 8(3)).
    """

    convex = False
    complex_valued = True

    weight: float = 1.0
    norm: float = 1.0

    @property
    def _knee(self) -> float:
        return sqrt(2 * self.weight) / self.norm

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """The sum of the parabolas; weight for every entry beyond the knee."""
        return (self.weight - self.norm**2 / 2 * (self._knee - z.abs()).clamp(min=0).square()).sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """min(|z|, (|z| - sqrt(2 w) step a)_+ / (1 - a^2 step)) with the sign of z; where a^2 step >= 1, the hard threshold."""
        size = z.abs()
        curve = torch.as_tensor(self.norm**2 * step, dtype=size.dtype, device=z.device)
        slope = (size - sqrt(2 * self.weight) * self.norm * step).clamp(min=0) / torch.where(curve < 1, 1 - curve, 1.0)
        hard = torch.where(size.square() > 2 * self.weight * step, size, torch.zeros_like(size))
        # Not the sign: that of a complex number below the smallest normal one is NaN.
        left = torch.where(curve < 1, torch.minimum(size, slope), hard)
        return z * (left / size.clamp(min=torch.finfo(size.dtype).tiny))

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient + a^2 (knee - |z|)_+ sign(z)| on the support, (|gradient| - sqrt(2 w) a)_+ off it."""
        on = (gradient + self.norm**2 * (self._knee - z.abs()).clamp(min=0) * torch.sgn(z)).abs()
        off = (gradient.abs() - sqrt(2 * self.weight) * self.norm).clamp(min=0)
        return torch.where(z != 0, on, off)

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i |gradient_i| / (sqrt(2 w) a): from here on 0 is stationary."""
        return gradient.abs().amax(-1) / (sqrt(2 * self.weight) * self.norm)
