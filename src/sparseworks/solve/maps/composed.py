"""One linear map after another."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.solve.linear import MAPS, LinearMap


@MAPS.register("composed")
class Composed(LinearMap):
    """u = A B z.

    Attributes:
        outer, inner: A and B.

    Raises:
        ShapeError: B's codomain is not A's domain.
    """

    def __init__(self, outer: LinearMap, inner: LinearMap):
        if outer.domain != inner.codomain:
            raise ShapeError(f"A map that takes {outer.domain} cannot follow one that gives {inner.codomain}.")
        self.outer, self.inner = outer, inner
        self.domain, self.codomain, self.dtype, self.device = inner.domain, outer.codomain, inner.dtype, inner.device
        self.output_dtype = outer.output_dtype or outer.dtype

    def forward(self, z: Shaped[Tensor, "*batch_and_domain"]) -> Shaped[Tensor, "*batch_and_codomain"]:
        """A (B z)."""
        return self.outer.forward(self.inner.forward(z))

    def adjoint(self, u: Shaped[Tensor, "*batch_and_codomain"]) -> Shaped[Tensor, "*batch_and_domain"]:
        """B* (A* u)."""
        return self.inner.adjoint(self.outer.adjoint(u))
