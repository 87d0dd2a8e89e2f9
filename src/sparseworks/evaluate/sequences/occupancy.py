"""Occupancy grids: which cells of a plane or a volume hold something, independently or in clumps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from sparseworks.core.errors import BudgetError


def occupancy(shape: Sequence[int], density: float = 0.1, *, batch: int = 1, clumps: float = 0.0, seed: int = 0) -> Bool[Tensor, "batch *shape"]:  # fmt: skip
    """Exactly round(density * cells) occupied cells a grid, at random, or those of the largest values of a blurred noise.

    Args:
        shape: cells along each of two or three axes.
        density: share of occupied cells.
        batch: grids.
        clumps: deviation in cells of the blur; 0: independent cells.
        seed: of everything drawn.

    Raises:
        BudgetError: a density outside (0, 1], or one that leaves a grid empty.
    """
    cells = int(torch.tensor(list(shape)).prod())
    count = round(density * cells)
    if not 0 < density <= 1 or count < 1:
        raise BudgetError(f"A density of {density} of {cells} cells: it must lie in (0, 1] and give at least one cell.")
    noise = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
    if clumps > 0:
        for axis, size in enumerate(shape, start=1):
            at = torch.arange(size, dtype=torch.float32)
            blur = (-((at[:, None] - at) ** 2) / (2 * clumps**2)).exp()
            noise = noise.transpose(axis, -1) @ (blur / blur.norm(dim=1, keepdim=True)).T
            noise = noise.transpose(axis, -1)
    kept = noise.flatten(1).topk(count, dim=1).indices
    return torch.zeros(batch, cells, dtype=torch.bool).scatter_(1, kept, True).view(batch, *shape)
