"""Masks of columns j, whatever the query: sinks, strides shifted from head to head, lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseworks.attention.masks.base import MASKS, Extent, at_least
from sparseworks.attention.masks.rules import ColumnMask
from sparseworks.attention.masks.tables import contains, counted, whole_numbers
from sparseworks.core.errors import PatternError


@MASKS.register("sink")
@dataclass(frozen=True)
class Sink(ColumnMask):
    """j < n: the first tokens (Xiao et al., 2023, arXiv 2309.17453)."""

    n: int

    def __post_init__(self):
        at_least(self, 1, n=self.n)

    def keeps_column(self, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """k < n."""
        return k < self.n

    def below(self, x: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """x, at most n."""
        return x.clamp(0, self.n)

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """The first keys: their number says which."""
        return torch.arange(self.row_bound(0, head, extent))


@MASKS.register("stride")
@dataclass(frozen=True)
class Stride(ColumnMask):
    """(j + head shift + 1) mod step = 0: every step-th column, another one for each head.

    Attributes:
        shift: by which the columns move from head to head; None spreads the heads over the residues, max(1, step // heads).

    Source: Lin et al., 2024, arXiv 2407.17678 (S2-Attention, over blocks: `Tiled(Stride(8, None), 64)`).
    """

    step: int
    shift: int | None = 0

    def __post_init__(self):
        at_least(self, 1, step=self.step)
        if self.shift is not None:
            at_least(self, 0, shift=self.shift)

    @property
    def by_head(self) -> bool:
        """Unless the shift is a multiple of the step."""
        return self.shift is None or self.shift % self.step > 0

    def keeps_column(self, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """(k + head shift + 1) mod step = 0."""
        return (k + head * self._shift(extent) + 1) % self.step == 0

    def below(self, x: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """floor((x + head shift) / step)."""
        return (x + head * self._shift(extent)) // self.step

    def _shift(self, extent: Extent) -> int:
        return max(1, self.step // extent.heads) if self.shift is None else self.shift


@MASKS.register("columns")
@dataclass(frozen=True)
class Columns(ColumnMask):
    """j is one of `listed`: global tokens, vertical stripes."""

    listed: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "listed", whole_numbers(self, "listed", self.listed))
        if self.listed and self.listed[0] < 0:
            raise PatternError(f"Columns are counted from 0, got {self.listed[0]}.")

    @classmethod
    def example(cls) -> Columns:
        """Three columns."""
        return cls((0, 5, 17))

    def keeps_column(self, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """k is listed."""
        return contains(self.listed, k)

    def below(self, x: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """Listed ones below x."""
        return counted(self.listed, x)
