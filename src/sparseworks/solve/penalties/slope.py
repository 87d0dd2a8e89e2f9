"""The sorted l1 norm."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.solve.penalty import PENALTIES, Norm, Step


@PENALTIES.register("slope")
@dataclass(frozen=True)
class SLOPE(Norm):
    """weight * sum_i weights_i |z|_(i), with |z|_(1) >= |z|_(2) >= ... and weights that do not rise; equal ones are the lasso.

    Attributes:
        weights: one a coordinate, falling; shorter ones are continued with their last, so that (1,) is the lasso.

    Source: Bogdan, van den Berg, Sabatti, Su and Candes, 2015 (arXiv 1407.3824).
    """

    separable = False

    weights: tuple[float, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weights or any(a < b for a, b in pairwise(self.weights)) or self.weights[-1] < 0:
            raise BudgetError(f"The weights of SLOPE fall, down to 0 at least; got {self.weights}.")

    @classmethod
    def example(cls) -> SLOPE:
        """Falling weights for six coordinates."""
        return cls((2.0, 1.5, 1.0, 1.0, 0.5, 0.25), 0.7)

    @classmethod
    def benjamini_hochberg(cls, n: int, rate: float = 0.1, weight: float = 1.0) -> SLOPE:
        """weights_i = quantile of the normal law at 1 - i rate / (2 n), which keeps the share of false discoveries near `rate`."""
        level = 1 - torch.arange(1, n + 1, dtype=torch.float64) * rate / (2 * n)
        return cls(tuple(torch.special.ndtri(level).tolist()), weight)

    def each(self, like: Tensor) -> Float[Tensor, " n"]:
        """The weights times `weight`, one a coordinate of `like`."""
        n = like.shape[-1]
        full = self.weights[:n] + (self.weights[-1],) * (n - len(self.weights))
        return self.weight * torch.tensor(full, dtype=like.dtype, device=like.device)

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * sum weights_i |z|_(i)."""
        return (z.abs().sort(dim=-1, descending=True).values * self.each(z)).sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """Isotonic regression of the sorted |z| - step * weights, clamped at 0, put back in place."""
        size, order = z.abs().sort(dim=-1, descending=True)
        falling = _isotonic(size - step * self.each(z)).clamp(min=0)
        return torch.sign(z) * torch.empty_like(falling).scatter(-1, order, falling)

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_k (sum of the k largest |gradient|) / (sum of the k first weights)."""
        size = gradient.abs().sort(dim=-1, descending=True).values.cumsum(-1)
        return (size / self.each(gradient).cumsum(-1)).amax(-1)


def _isotonic(v: Tensor) -> Tensor:
    """The nearest falling sequence of every row: pools of neighbours, by the stack algorithm, on plain numbers."""
    rows = v.detach().double().reshape(-1, v.shape[-1])
    pooled = torch.tensor([_pool(row) for row in rows.tolist()], dtype=v.dtype, device=v.device)
    return pooled.reshape(v.shape)


def _pool(row: list[float]) -> list[float]:
    sums: list[float] = []
    counts: list[int] = []
    for x in row:
        sums.append(x)
        counts.append(1)
        while len(sums) > 1 and sums[-2] * counts[-1] <= sums[-1] * counts[-2]:
            total, count = sums.pop(), counts.pop()
            sums[-1] += total
            counts[-1] += count
    return [s / c for s, c in zip(sums, counts, strict=True) for _ in range(c)]
