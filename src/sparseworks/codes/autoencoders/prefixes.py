"""Prefixes: the loss is the mean over nested parts of a code, so that one autoencoder serves several budgets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.core.codes import Codes
from sparseworks.core.config import NOUNS
from sparseworks.core.errors import BudgetError
from sparseworks.core.registry import Registry

PREFIXES: Registry[type[Prefixes]] = Registry("prefixes", "sparseworks.codes.autoencoders.prefixes")


class Prefixes:
    """Base of all."""

    def __call__(self, sae: SparseAutoencoder, codes: Codes, y: Float[Tensor, "rows d_out"]) -> Tensor:
        """Mean over prefixes of the mean squared error of an entry."""
        raise NotImplementedError

    @property
    def steady(self) -> bool:
        """As that of `LatentRule`."""
        return False


NOUNS["prefixes"] = (Prefixes, PREFIXES)


@PREFIXES.register("hierarchical")
@dataclass(frozen=True)
class Hierarchical(Prefixes):
    """(1/|J|) sum_{j in J} ||y - b - sum_{i <= j} z_(i) d_(i)||^2 / d over the code sorted downwards.

    Attributes:
        every: J is every so many entries and all; 0: the powers of two and all.

    Of the reconstructions only one partial sum a member of J is kept. Source: Balagansky et al., 2025, arXiv 2505.24473.
    """

    every: int = 0

    def budgets(self, k: int) -> list[int]:
        """J for codes of k entries, ascending."""
        ends = range(self.every, k, self.every) if self.every else [1 << i for i in range(k.bit_length())]
        return sorted({*(j for j in ends if j < k), k})

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(self, sae: SparseAutoencoder, codes: Codes, y: Float[Tensor, "rows d_out"]) -> Tensor:
        """By partial sums of segments of the sorted code."""
        order = codes.values.detach().argsort(dim=1, descending=True, stable=True)
        values, indices = codes.values.gather(1, order), codes.indices.gather(1, order)
        left, total, first = y - sae.b_dec, y.new_zeros(()), 0
        ends = self.budgets(values.shape[1])
        for end in ends:
            part = _Part(values[:, first:end].contiguous(), indices[:, first:end].contiguous(), codes.width)
            left = left - part.decoded(sae.W_dec)
            total = total + left.square().mean()
            first = end
        return total / len(ends)


@PREFIXES.register("matryoshka")
@dataclass(frozen=True)
class Matryoshka(Prefixes):
    """(1/n) sum_m ||y - b - sum_{i < m} z_i d_i||^2 / d over prefixes m of the latents' index.

    Attributes:
        shares: ends of the prefixes as shares of the latents, ascending, the last 1.

    Source: Bussmann et al., 2025, arXiv 2503.17547 (five nested sizes).
    """

    shares: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0)

    def __post_init__(self) -> None:
        if not self.shares or list(self.shares) != sorted(self.shares) or self.shares[0] <= 0 or self.shares[-1] != 1:
            raise BudgetError(f"Shares of nested dictionaries ascend from above 0 to 1, got {self.shares}.")

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(self, sae: SparseAutoencoder, codes: Codes, y: Float[Tensor, "rows d_out"]) -> Tensor:
        """Group by group: what a longer prefix adds is taken from what the shorter left."""
        left, total, first = y - sae.b_dec, y.new_zeros(()), 0
        for share in self.shares:
            end = max(first, round(share * codes.width))
            if codes.is_whole:
                left = left - codes.values[:, first:end] @ sae.W_dec[first:end]
            else:
                inside = (codes.indices >= first) & (codes.indices < end)
                left = left - _Part(codes.values * inside, codes.indices, codes.width).decoded(sae.W_dec)
            total, first = total + left.square().mean(), end
        return total / len(self.shares)


@dataclass(frozen=True)
class _Part:
    """Some entries of codes that were checked as a whole."""

    values: Tensor
    indices: Tensor
    width: int

    def decoded(self, dictionary: Tensor) -> Tensor:
        return torch.ops.sparseworks.decode(self.values, self.indices, dictionary, None)
