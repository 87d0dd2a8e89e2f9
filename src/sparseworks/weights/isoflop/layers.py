"""What takes the place of one layer: larger and sparse, with as many multiplications (Thangarasa et al., 2023, arXiv 2303.11525).

Each names its sparse parts; how many entries they keep is worked out by `isoflop`.
"""

from __future__ import annotations

from math import ceil
from typing import Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError
from sparseworks.weights.isoflop.fresh import collect, norm, sizes, spread


class Larger(Protocol):
    """A module made of a layer and a sparsity."""

    sparse: tuple[str, ...]
    """Names of the parts that are to be sparse."""

    extra: int
    """Entries of the parts that stay dense."""

    def __init__(self, layer: nn.Module, sparsity: float): ...


class ParallelLayer(nn.Module):
    """y = sum_j norm_j(W_j x) over 1 / (1 - s) branches, each of the shape of the layer and with a norm of its own.

    Maps have batch normalisation, rows a layer normalisation. The scales begin at one over the root of the branches, so
    that the sum begins at the variance of one of them (the authors normalise the sum once more).
    """

    extra = 0

    def __init__(self, layer: nn.Module, sparsity: float):
        """Fresh branches."""
        super().__init__()
        out, count = sizes(layer)[0], max(2, int(1 / (1 - sparsity) + 0.5))
        self.branches = nn.ModuleList(spread(layer, out) for _ in range(count))
        self.norms = nn.ModuleList(norm(layer, out) for _ in range(count))
        self.sparse = tuple(f"branches.{j}" for j in range(count))
        for each in self.norms:
            nn.init.constant_(each.get_parameter("weight"), count**-0.5)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The sum of the branches."""
        made = [norm(branch(x)) for branch, norm in zip(self.branches, self.norms, strict=True)]
        return torch.stack(made).sum(dim=0)


class FactorisedLayer(nn.Module):
    """y = V relu(norm(U x)): U to d' = in out / ((1 - s) (in + out)) features through the layer's window, V from there."""

    sparse = ("first", "second")
    extra = 0

    def __init__(self, layer: nn.Module, sparsity: float):
        """Fresh factors."""
        super().__init__()
        out, width = sizes(layer)
        inner = ceil(out * width / ((1 - sparsity) * (out + width)))
        self.first, self.norm, self.second = spread(layer, inner), norm(layer, inner), collect(layer, inner)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Out and back in."""
        return self.second(torch.relu(self.norm(self.first(x))))


class DopedLayer(nn.Module):
    """y = W x + V U x: W sparse and of the layer's shape, U and V dense, of rank r = s in out / (in + out)."""

    sparse = ("main",)

    def __init__(self, layer: nn.Module, sparsity: float):
        """Fresh parts.

        Raises:
            BudgetError: the layer is so small that the rank is zero.
        """
        super().__init__()
        out, width = sizes(layer)
        rank = int(sparsity * out * width / (out + width))
        if not rank:
            raise BudgetError(f"A {out}x{width} layer leaves no rank at sparsity {sparsity:g}; name it in `skip`.")
        self.main, self.low = spread(layer, out), spread(layer, rank)
        self.high = collect(layer, rank)
        self.extra = rank * (out + width)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Both parts."""
        return self.main(x) + self.high(self.low(x))


def larger(kind: type[nn.Module], layer: nn.Module, sparsity: float) -> tuple[nn.Module, Larger]:
    """One of the above for `layer`, in its mode of training."""
    made = kind(layer, sparsity).train(layer.training)
    return made, cast("Larger", made)
