"""Input regions as a site: a gate in front of a model that training makes sparse (DynST)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ShapeError
from sparseworks.core.site import Site


class RegionGate(nn.Module):
    """x * w, one trained number a region, the same for all leading dimensions (samples, times, channels).

    Time folded into channels gives one choice of regions for all times (Wu et al., 2024, arXiv 2403.02914). Methods act on
    `site(name)`, a matrix of one row; a region whose entry is dropped is not read.

    Args:
        regions: the trailing dimensions of the input, such as (height, width).
    """

    def __init__(self, regions: Sequence[int]):
        super().__init__()
        self.regions = tuple(regions)
        self.weight = nn.Parameter(torch.ones(1, prod(self.regions)))

    def forward(self, x: Float[Tensor, "*lead regions"]) -> Float[Tensor, "*lead regions"]:
        """The gated input.

        Raises:
            ShapeError: the trailing dimensions are not the regions.
        """
        if tuple(x.shape[-len(self.regions) :]) != self.regions:
            raise ShapeError(f"A gate of regions {self.regions} got {tuple(x.shape)}.")
        return x * self.weight.view(self.regions)

    def site(self, name: str) -> Site:
        """The gate as a site of the model in which it is called `name`; give it to `Sparsifier(sites=...)`."""
        return Site(name, "linear", f"{name}.weight", (1, prod(self.regions)))
