"""Views of a linear map: its adjoint, and a multiple of it."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor

from sparseworks.solve.linear import MAPS, LinearMap


@MAPS.register("adjoint")
class Adjoint(LinearMap):
    """u = A* z.

    Attributes:
        of: A.
    """

    def __init__(self, of: LinearMap):
        self.of = of
        self.domain, self.codomain, self.dtype, self.device = (
            of.codomain,
            of.domain,
            of.output_dtype or of.dtype,
            of.device,
        )
        self.output_dtype = of.dtype

    def forward(self, z: Shaped[Tensor, "*batch_and_domain"]) -> Shaped[Tensor, "*batch_and_codomain"]:
        """A* z."""
        return self.of.adjoint(z)

    def adjoint(self, u: Shaped[Tensor, "*batch_and_codomain"]) -> Shaped[Tensor, "*batch_and_domain"]:
        """A u."""
        return self.of.forward(u)

    def squared_norm(self, rounds: int = 100, tolerance: float = 1e-6, seed: int = 0) -> float:
        """That of A."""
        return self.of.squared_norm(rounds, tolerance, seed)


@MAPS.register("scaled")
class Scaled(LinearMap):
    """u = factor * A z.

    Attributes:
        of: A.
        factor: a real number.
    """

    def __init__(self, of: LinearMap, factor: float):
        self.of, self.factor = of, factor
        self.domain, self.codomain, self.dtype, self.device = of.domain, of.codomain, of.dtype, of.device
        self.output_dtype = of.output_dtype

    def forward(self, z: Shaped[Tensor, "*batch_and_domain"]) -> Shaped[Tensor, "*batch_and_codomain"]:
        """factor * (A z)."""
        return self.factor * self.of.forward(z)

    def adjoint(self, u: Shaped[Tensor, "*batch_and_codomain"]) -> Shaped[Tensor, "*batch_and_domain"]:
        """factor * (A* u)."""
        return self.factor * self.of.adjoint(u)

    def squared_norm(self, rounds: int = 100, tolerance: float = 1e-6, seed: int = 0) -> float:
        """factor^2 times that of A."""
        return self.factor**2 * self.of.squared_norm(rounds, tolerance, seed)
