"""LinearMap: A and its adjoint, on batches of codes; never more than the products are asked of it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.core.registry import Registry

MAPS: Registry[type[LinearMap]] = Registry("linear map", "sparseworks.solve.maps")


class LinearMap:
    """u = A z for every element of a batch: z (*batch, *domain) -> u (*batch, *codomain), real or complex.

    A subclass sets the attributes and defines `forward` and `adjoint`; `A @ z` and `A.mT @ u` are the same in operators.

    Attributes:
        domain, codomain: shapes of one element, without the batch.
        dtype: of what `adjoint` returns; complex codes have a complex dtype.
        output_dtype: of what `forward` returns; None: the same.
        device: where its tensors lie.
    """

    registered_name: ClassVar[str]
    domain: tuple[int, ...]
    codomain: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    output_dtype: torch.dtype | None = None
    device: torch.device = torch.device("cpu")

    def forward(self, z: Shaped[Tensor, "*batch_and_domain"]) -> Shaped[Tensor, "*batch_and_codomain"]:
        """A z."""
        raise NotImplementedError

    def adjoint(self, u: Shaped[Tensor, "*batch_and_codomain"]) -> Shaped[Tensor, "*batch_and_domain"]:
        """A* u, with Re<A z, u> = Re<z, A* u>."""
        raise NotImplementedError

    def __call__(self, z: Shaped[Tensor, "*batch_and_domain"]) -> Shaped[Tensor, "*batch_and_codomain"]:
        """`forward` after a check of the shape.

        Raises:
            ShapeError: z does not end in `domain`.
        """
        if tuple(z.shape[z.dim() - len(self.domain) :]) != self.domain:
            raise ShapeError(f"{type(self).__name__} takes (*batch, {_sizes(self.domain)}), got {tuple(z.shape)}.")
        return self.forward(z)

    def __matmul__(self, other: Tensor | LinearMap) -> Any:
        """A z, or the map A B."""
        if isinstance(other, Tensor):
            return self(other)
        from sparseworks.solve.maps.composed import Composed

        return Composed(self, other)

    @property
    def mT(self) -> LinearMap:
        """The adjoint, as a map."""
        from sparseworks.solve.maps.views import Adjoint

        return Adjoint(self)

    def normal(self, z: Shaped[Tensor, "*batch_and_domain"]) -> Shaped[Tensor, "*batch_and_domain"]:
        """A* A z; override where that is cheaper than both."""
        return self.adjoint(self.forward(z))

    def squared_norm(self, rounds: int = 100, tolerance: float = 1e-6, seed: int = 0) -> float:
        """Largest eigenvalue of A* A by power iteration, from below; exact ones override."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(1, *self.domain, generator=generator, dtype=self.dtype).to(self.device)
        found = 0.0
        for _ in range(rounds):
            z = self.normal(z / torch.linalg.vector_norm(z).clamp(min=torch.finfo(self.dtype).tiny))
            before, found = found, float(torch.linalg.vector_norm(z))
            if abs(found - before) <= tolerance * found:
                break
        return found


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
