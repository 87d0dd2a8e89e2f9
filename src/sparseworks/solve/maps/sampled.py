"""Only some entries: masks, gaps, subsampling."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.solve.linear import MAPS, LinearMap


@MAPS.register("sampled")
class Sampled(LinearMap):
    """u = z[mask], in the order of the flattened mask: domain the mask's shape, codomain (entries that are True,).

    Attributes:
        mask: what is seen.

    Raises:
        DtypeError: not boolean.
        ShapeError: nothing is seen.
    """

    def __init__(self, mask: Bool[Tensor, "*shape"], dtype: torch.dtype = torch.float32):
        if mask.dtype != torch.bool:
            raise DtypeError(f"A mask is boolean, got {mask.dtype}.")
        self.mask, self.dtype, self.device = mask, dtype, mask.device
        self.domain, self.codomain = tuple(mask.shape), (int(mask.sum()),)
        if not self.codomain[0]:
            raise ShapeError("A mask that shows nothing leaves nothing to fit.")

    def forward(self, z: Shaped[Tensor, "*batch_and_domain"]) -> Shaped[Tensor, "*batch_and_codomain"]:
        """z[mask]."""
        return z[..., self.mask]

    def adjoint(self, u: Shaped[Tensor, "*batch_and_codomain"]) -> Shaped[Tensor, "*batch_and_domain"]:
        """u at its places, 0 elsewhere."""
        flat = u.new_zeros(*u.shape[:-1], self.mask.numel())
        at = self.mask.flatten().nonzero().flatten().expand(u.shape)
        return flat.scatter(-1, at, u).reshape(*u.shape[:-1], *self.domain)

    def squared_norm(self, rounds: int = 100, tolerance: float = 1e-6, seed: int = 0) -> float:
        """1."""
        del rounds, tolerance, seed
        return 1.0
