"""Masks in units of several tokens: blocks, frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseworks.attention.masks.base import MASKS, Extent, Mask, Span, at_least
from sparseworks.attention.masks.windows import Window


class Coarse(Mask):
    """`inner` over units of `unit` tokens: (i, j) is kept when it keeps (i // unit, j // unit)."""

    unit: int

    @property
    def inner(self) -> Mask:
        """The mask over units."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[Mask, ...]:
        """The mask over units."""
        return (self.inner,)

    def check(self, end: int, extent: Extent) -> None:
        """In units."""
        self.inner.check(-(-end // self.unit), self._units(extent))

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """Of the units of the pair."""
        return self.inner.keeps(q // self.unit, k // self.unit, head, self._units(extent))

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """A block touches every pair of its first to last units, so this is as exact as the mask over units."""
        return self.inner.some(self._over(rows), self._over(cols), head, self._units(extent))

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Likewise."""
        return self.inner.every(self._over(rows), self._over(cols), head, self._units(extent))

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """The tokens of the kept units."""
        units = self.inner.row(q // self.unit, head, self._units(extent))
        keys = (units[:, None] * self.unit + torch.arange(self.unit)).flatten()
        return keys[keys < extent.keys]

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """Units times tokens."""
        return min(extent.keys, self.unit * self.inner.row_bound(q // self.unit, head, self._units(extent)))

    @property
    def exact_some(self) -> bool:
        """Where the mask over units is."""
        return self.inner.exact_some

    @property
    def exact_every(self) -> bool:
        """Where the mask over units is."""
        return self.inner.exact_every

    def _units(self, extent: Extent) -> Extent:
        return Extent(-(-extent.keys // self.unit), extent.heads)

    def _over(self, span: Span) -> Span:
        return Span(span.first // self.unit, span.last // self.unit)


@MASKS.register("tiled")
@dataclass(frozen=True)
class Tiled(Coarse):
    """A mask over units of `unit` tokens: `Tiled(Window(16), 64)` keeps this block of 64 and the 15 before it."""

    mask: Mask
    unit: int = 64

    def __post_init__(self):
        at_least(self, 1, unit=self.unit)

    @classmethod
    def example(cls) -> Tiled:
        """A window of three units."""
        return cls(Window(3), 4)

    @property
    def inner(self) -> Mask:
        """The mask."""
        return self.mask
