"""The sum of singular values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Norm, Step


@PENALTIES.register("nuclear")
@dataclass(frozen=True)
class Nuclear(Norm):
    """weight * sum of the singular values of the code, a matrix given row after row; zeros are among those values.

    Attributes:
        columns: of the matrix.
    """

    separable = False
    complex_valued = True

    columns: int
    weight: float = 1.0

    @classmethod
    def example(cls) -> Nuclear:
        """Matrices of three columns."""
        return cls(3, 0.7)

    def _matrix(self, z: Tensor) -> Tensor:
        return z.unflatten(-1, (-1, self.columns))

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * sum of singular values."""
        return self.weight * torch.linalg.svdvals(self._matrix(z)).sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """U (S - step * weight)_+ V^H."""
        u, s, vh = torch.linalg.svd(self._matrix(z), full_matrices=False)
        return ((u * (s - step * self.weight).clamp(min=0).unsqueeze(-2)) @ vh).flatten(-2)

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """The largest singular value of the gradient / weight."""
        return torch.linalg.svdvals(self._matrix(gradient)).amax(-1) / self.weight
