"""Prefixes: the loss is the mean over nested parts of a code, so that one autoencoder serves several budgets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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
        every: J is every so many entries and all; 1, as published: 1, 2, ..., K; 0: the powers of two and all, which weigh small budgets
            most and explained less at large ones (at 32 of 32 less than TopK trained for 16).

    Of the reconstructions only one partial sum is kept, whatever J. Source: Balagansky et al., 2025, arXiv 2505.24473 (all of J, with a
    kernel that does the same).
    """

    every: int = 1

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
        return _Nested.apply(values, indices, sae.W_dec, y - sae.b_dec, self.budgets(values.shape[1]))  # type: ignore[no-any-return]


class _Nested(torch.autograd.Function):
    """Mean over prefixes of mean (left_j)^2, left_j = left - what the first entries decode to. The gradient of an entry is that of all
    prefixes that hold it, so that going back from the longest, what is left after each is summed up and entries are given back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, dictionary: Tensor, left: Tensor, ends: list[int]) -> Tensor:
        total = left.new_zeros(())
        for first, end in pairwise((0, *ends)):
            left = left - _decoded(values, indices, dictionary, first, end)
            total = total + left.square().mean()
        ctx.save_for_backward(values, indices, dictionary, left)
        ctx.ends = ends
        return total / len(ends)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, dictionary, left = ctx.saved_tensors
        sums, of_values, of_atoms = torch.zeros_like(left), torch.empty_like(values), torch.zeros_like(dictionary)
        scale = 2 * grad / (len(ctx.ends) * left.numel())
        for first, end in reversed(list(pairwise((0, *ctx.ends)))):
            sums = sums + left
            at = indices[:, first:end].contiguous()
            of_values[:, first:end] = torch.ops.sparseworks.decode_values(sums, at, dictionary)
            for entry in range(first, end):
                of_atoms.index_add_(0, indices[:, entry], values[:, entry, None] * sums)
            left = left + _decoded(values, indices, dictionary, first, end)
        return of_values.mul_(-scale), None, of_atoms.mul_(-scale), sums.mul_(scale), None


def _decoded(values: Tensor, indices: Tensor, dictionary: Tensor, first: int, end: int) -> Tensor:
    part = values[:, first:end].contiguous(), indices[:, first:end].contiguous()
    return torch.ops.sparseworks.decode(*part, dictionary, None)


@PREFIXES.register("matryoshka")
@dataclass(frozen=True)
class Matryoshka(Prefixes):
    """(1/(n+1)) sum_m ||y - b - sum_{i < m} z_i d_i||^2 / d over n prefixes m of the latents' index and the empty one.

    Attributes:
        shares: ends of the prefixes as shares of the latents, ascending, the last 1.

    Source: Bussmann et al., 2025, arXiv 2503.17547 (five nested sizes; the empty prefix, which holds b at the mean, as in the authors' code).
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
        left, first = y - sae.b_dec, 0
        total = left.square().mean()
        for share in self.shares:
            end = max(first, round(share * codes.width))
            if codes.is_whole:
                left = left - codes.values[:, first:end] @ sae.W_dec[first:end]
            else:
                inside = (codes.indices >= first) & (codes.indices < end)
                left = left - _Part(codes.values * inside, codes.indices, codes.width).decoded(sae.W_dec)
            total, first = total + left.square().mean(), end
        return total / (len(self.shares) + 1)


@dataclass(frozen=True)
class _Part:
    """Some entries of codes that were checked as a whole."""

    values: Tensor
    indices: Tensor
    width: int

    def decoded(self, dictionary: Tensor) -> Tensor:
        return torch.ops.sparseworks.decode(self.values, self.indices, dictionary, None)
