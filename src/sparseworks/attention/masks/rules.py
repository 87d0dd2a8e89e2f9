"""Two shapes of rule from which most masks are made: kept offsets i - j, and kept columns j. Both count; blocks and rows follow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.attention.masks.base import Extent, Mask, Span


class OffsetMask(Mask):
    """(i, j) is kept when i - j is in a set D. A block's offsets are all of [first q - last k, last q - first k]."""

    def keeps_offset(self, d: Tensor) -> Tensor:
        """Whether the offset d = i - j is in D."""
        raise NotImplementedError

    def below(self, x: Tensor) -> Tensor:
        """Members of D below x, up to a constant."""
        raise NotImplementedError

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """i - j in D."""
        return self.keeps_offset(q - k)

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """|D in the block's offsets| > 0."""
        return self._count(rows, cols) > 0

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """|D in the block's offsets| = their number."""
        return self._count(rows, cols) == rows.last - cols.first - (rows.first - cols.last) + 1

    def _count(self, rows: Span, cols: Span) -> Tensor:
        return self.below(rows.last - cols.first + 1) - self.below(rows.first - cols.last)

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """q - d for the members d of D that lead to a key."""
        return q - members(self.below, q - extent.keys + 1, q).flip(0)

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """Exact."""
        return count(self.below, q - extent.keys + 1, q)


class ColumnMask(Mask):
    """(i, j) is kept when j is in a set C of columns, of all heads or of each."""

    def keeps_column(self, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """Whether column k is in C."""
        raise NotImplementedError

    def below(self, x: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """Members of C below x, up to a constant for each head."""
        raise NotImplementedError

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """j in C."""
        return self.keeps_column(k, head, extent)

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """|C in the block's columns| > 0."""
        return self._count(cols, head, extent) > 0

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """|C in the block's columns| = their number."""
        return self._count(cols, head, extent) == cols.last - cols.first + 1

    def _count(self, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        return self.below(cols.last + 1, head, extent) - self.below(cols.first, head, extent)

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """C among the keys."""
        return members(self._below_of(head, extent), 0, extent.keys - 1)

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """Exact."""
        return count(self._below_of(head, extent), 0, extent.keys - 1)

    def _below_of(self, head: int, extent: Extent) -> Callable[[Tensor], Tensor]:
        which = torch.tensor(head)
        return lambda x: self.below(x, which, extent)


def count(below: Callable[[Tensor], Tensor], first: int, last: int) -> int:
    """Members of a set in [first, last], from how many lie below a number."""
    return max(0, int(below(torch.tensor(last + 1)) - below(torch.tensor(first)))) if first <= last else 0


def members(below: Callable[[Tensor], Tensor], first: int, last: int) -> Int[Tensor, " members"]:
    """Members of a set in [first, last], ascending, by bisection on how many lie below a number: O(members log range)."""
    wanted = torch.arange(1, count(below, first, last) + 1) + below(torch.tensor(first))
    low, high = torch.full_like(wanted, first), torch.full_like(wanted, last)
    for _ in range((last - first + 1).bit_length() if len(wanted) else 0):
        middle = (low + high).div(2, rounding_mode="floor")
        reached = below(middle + 1) >= wanted
        low, high = torch.where(reached, low, middle + 1), torch.where(reached, middle, high)
        low = torch.minimum(low, high)
    return high
