"""A dictionary held as a matrix, one atom a row."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sparseworks.core.errors import DtypeError, NonFiniteError, ShapeError
from sparseworks.solve.linear import MAPS, LinearMap


@MAPS.register("atoms")
class Atoms(LinearMap):
    """u = z D, with D (atoms, features): domain (atoms,), codomain (features,).

    Attributes:
        matrix: D.

    Raises:
        ShapeError: not a matrix.
        DtypeError: not floating point or complex.
        NonFiniteError: NaN or infinity.
    """

    def __init__(self, matrix: Shaped[Tensor, "atoms features"]):
        if matrix.dim() != 2 or not matrix.numel():
            raise ShapeError(f"A dictionary is a matrix (atoms, features) with entries, got {tuple(matrix.shape)}.")
        if not (matrix.is_floating_point() or matrix.is_complex()):
            raise DtypeError(f"A dictionary is floating point or complex, got {matrix.dtype}.")
        # One sum tells in a fraction of the time; only an overflow of it needs the longer look.
        if not (bool(matrix.sum().isfinite()) or bool(torch.isfinite(matrix).all())):
            raise NonFiniteError("The dictionary holds NaN or infinity.")
        self.matrix, self.dtype, self.device = matrix, matrix.dtype, matrix.device
        self.domain, self.codomain = (matrix.shape[0],), (matrix.shape[1],)

    def forward(self, z: Float[Tensor, "*rows atoms"]) -> Float[Tensor, "*rows features"]:
        """z D."""
        return z @ self.matrix

    def adjoint(self, u: Float[Tensor, "*rows features"]) -> Float[Tensor, "*rows atoms"]:
        """u D^H."""
        return u @ self.matrix.mH

    def gram(self) -> Float[Tensor, "atoms atoms"]:
        """D D^H."""
        return self.matrix @ self.matrix.mH

    def atoms(self, indices: Int[Tensor, "*any"]) -> Float[Tensor, "*any features"]:
        """The atoms with these numbers."""
        return self.matrix[indices]

    def squared_norm(self, rounds: int = 100, tolerance: float = 1e-6, seed: int = 0) -> float:
        """Largest squared singular value, exact."""
        del rounds, tolerance, seed
        small = (
            self.matrix @ self.matrix.mH if len(self.matrix) <= self.matrix.shape[1] else self.matrix.mH @ self.matrix
        )
        wide = torch.complex128 if small.is_complex() else torch.float64
        return float(torch.linalg.eigvalsh(small.to(wide))[-1])
