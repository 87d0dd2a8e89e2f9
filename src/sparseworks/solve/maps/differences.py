"""Finite differences along axes: total variation, changes in time."""

from __future__ import annotations

from math import cos, pi

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.solve.linear import MAPS, LinearMap


@MAPS.register("differences")
class Differences(LinearMap):
    """u[a] = z shifted by one along axis a minus z, 0 at the end: domain `shape`, codomain (number of axes, *shape).

    Attributes:
        axes: which axes of the shape; all unless given.

    Raises:
        ShapeError: an axis that the shape does not have.
    """

    def __init__(
        self, shape: tuple[int, ...], axes: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ):  # fmt: skip
        self.axes = tuple(range(len(shape))) if axes is None else axes
        if not self.axes or not all(0 <= a < len(shape) for a in self.axes):
            raise ShapeError(f"Differences along axes {self.axes} of a shape {shape}.")
        self.domain, self.codomain, self.dtype = tuple(shape), (len(self.axes), *shape), dtype
        self.device = torch.device(device)
        self._from_end = tuple(a - len(shape) for a in self.axes)

    def forward(self, z: Float[Tensor, "*batch_and_domain"]) -> Float[Tensor, "*batch_and_codomain"]:
        """z[i + 1] - z[i] along every axis."""
        parts = [torch.diff(z, dim=a, append=z.narrow(a, z.shape[a] - 1, 1)) for a in self._from_end]
        return torch.stack(parts, dim=-len(self.codomain))

    def adjoint(self, u: Float[Tensor, "*batch_and_codomain"]) -> Float[Tensor, "*batch_and_domain"]:
        """sum over axes of u[i - 1] - u[i], whatever stands at the end left out."""
        total = torch.zeros_like(u.select(-len(self.codomain), 0))
        for part, a in zip(u.unbind(-len(self.codomain)), self._from_end, strict=True):
            inner = part.narrow(a, 0, part.shape[a] - 1)
            edge = torch.zeros_like(part.narrow(a, 0, 1))
            total = total - torch.diff(inner, dim=a, prepend=edge, append=edge)
        return total

    def squared_norm(self, rounds: int = 100, tolerance: float = 1e-6, seed: int = 0) -> float:
        """sum over axes of 4 cos^2(pi / (2 n)), exact."""
        del rounds, tolerance, seed
        return sum(4 * cos(pi / (2 * self.domain[a])) ** 2 for a in self.axes)
