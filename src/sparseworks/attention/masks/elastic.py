"""Elastic windows: a span that grows with the length of the sequence, by a rule of its own for every head (MoA)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparseworks.attention.masks.base import MASKS, Extent, Mask, Span
from sparseworks.attention.masks.windows import Window
from sparseworks.core.errors import PatternError


@MASKS.register("elastic")
@dataclass(frozen=True)
class Elastic(Mask):
    """0 <= i - j < alpha + beta keys, at least 1 (Fu et al. 2024, arXiv 2406.14909)."""

    alpha: float
    beta: float

    def __post_init__(self):
        if self.beta < 0 or self.alpha + self.beta <= 0:
            raise PatternError(f"A span alpha + beta n grows with n and is positive from n = 1 on; got {self}.")

    @classmethod
    def example(cls) -> Elastic:
        """A token and a quarter of the keys."""
        return cls(1, 0.25)

    def window(self, extent: Extent) -> Window:
        """The window at that many keys."""
        return Window(max(1, round(self.alpha + self.beta * extent.keys)))

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """Of the window."""
        return self.window(extent).keeps(q, k, head, extent)

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Of the window."""
        return self.window(extent).some(rows, cols, head, extent)

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Of the window."""
        return self.window(extent).every(rows, cols, head, extent)

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """Of the window."""
        return self.window(extent).row(q, head, extent)

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """Of the window."""
        return self.window(extent).row_bound(q, head, extent)
