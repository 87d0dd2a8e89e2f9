"""Masks of offsets i - j: windows, bands, diagonals, powers of two; and everything, and the last rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseworks.attention.masks.base import MASKS, Extent, Mask, Span, at_least
from sparseworks.attention.masks.rules import OffsetMask
from sparseworks.attention.masks.tables import contains, counted, whole_numbers


@MASKS.register("full")
@dataclass(frozen=True)
class Full(OffsetMask):
    """Every pair; `~Full()` is none."""

    def keeps_offset(self, d: Tensor) -> Tensor:
        """True."""
        return d == d

    def below(self, x: Tensor) -> Tensor:
        """x."""
        return x


@MASKS.register("causal")
@dataclass(frozen=True)
class Causal(OffsetMask):
    """j <= i."""

    def keeps_offset(self, d: Tensor) -> Tensor:
        """0 <= d."""
        return d >= 0

    def below(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return x.clamp(min=0)


@MASKS.register("window")
@dataclass(frozen=True)
class Window(OffsetMask):
    """0 <= i - j < n: the query's own token and the n - 1 before it (Child et al., 2019, arXiv 1904.10509)."""

    n: int

    def __post_init__(self):
        at_least(self, 1, n=self.n)

    def keeps_offset(self, d: Tensor) -> Tensor:
        """0 <= d < n."""
        return (d >= 0) & (d < self.n)

    def below(self, x: Tensor) -> Tensor:
        """x, at least 0 and at most n."""
        return x.clamp(0, self.n)

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """The last keys up to q: they lie side by side, so that their number says which."""
        end = min(q + 1, extent.keys)
        return torch.arange(end - self.row_bound(q, head, extent), end)


@MASKS.register("band")
@dataclass(frozen=True)
class Band(OffsetMask):
    """|i - j| < n: a window to both sides (Beltagy et al., 2020, arXiv 2004.05150)."""

    n: int

    def __post_init__(self):
        at_least(self, 1, n=self.n)

    def keeps_offset(self, d: Tensor) -> Tensor:
        """-n < d < n."""
        return (d > -self.n) & (d < self.n)

    def below(self, x: Tensor) -> Tensor:
        """x + n - 1, at least 0 and at most 2n - 1."""
        return (x + self.n - 1).clamp(0, 2 * self.n - 1)


@MASKS.register("dilated")
@dataclass(frozen=True)
class Dilated(OffsetMask):
    """i - j in {0, step, ..., (window - 1) step}: `window` keys, `step` apart (Beltagy et al., 2020, arXiv 2004.05150)."""

    window: int
    step: int

    def __post_init__(self):
        at_least(self, 1, window=self.window, step=self.step)

    def keeps_offset(self, d: Tensor) -> Tensor:
        """d = m step, 0 <= m < window."""
        return (d >= 0) & (d < self.window * self.step) & (d % self.step == 0)

    def below(self, x: Tensor) -> Tensor:
        """ceil(x / step), at least 0 and at most window."""
        return (-(-x // self.step)).clamp(0, self.window)


@MASKS.register("offsets")
@dataclass(frozen=True)
class Offsets(OffsetMask):
    """i - j is one of `offsets`: diagonals; negative ones lie in the future."""

    offsets: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "offsets", whole_numbers(self, "offsets", self.offsets))

    @classmethod
    def example(cls) -> Offsets:
        """Four diagonals."""
        return cls((-3, 0, 2, 9))

    def keeps_offset(self, d: Tensor) -> Tensor:
        """d is listed."""
        return contains(self.offsets, d)

    def below(self, x: Tensor) -> Tensor:
        """Listed ones below x."""
        return counted(self.offsets, x)


@MASKS.register("multi_diagonal")
@dataclass(frozen=True)
class MultiDiagonal(OffsetMask):
    """|i - j - m period| < width for a whole m: bands at multiples of the frame length (arXiv 2506.03065, 2502.01776)."""

    period: int
    width: int

    def __post_init__(self):
        at_least(self, 1, period=self.period, width=self.width)

    def keeps_offset(self, d: Tensor) -> Tensor:
        """(d + width - 1) mod period < 2 width - 1."""
        return (d + self.width - 1) % self.period < 2 * self.width - 1

    def below(self, x: Tensor) -> Tensor:
        """Whole periods, and the part of the last that lies in the band."""
        at, band = x + self.width - 1, min(2 * self.width - 1, self.period)
        return at // self.period * band + (at % self.period).clamp(max=band)


@dataclass(frozen=True)
class Powers(OffsetMask):
    """i - j is 0 or a power of two."""

    def keeps_offset(self, d: Tensor) -> Tensor:
        """d has at most one bit."""
        return (d >= 0) & ((d & (d - 1)) == 0)

    def below(self, x: Tensor) -> Tensor:
        """1 + ceil(log2 x) from x = 1 on."""
        powers = torch.cat([torch.zeros(1, dtype=torch.long), 2 ** torch.arange(62)])
        return torch.searchsorted(powers, x.contiguous())


@MASKS.register("last_rows")
@dataclass(frozen=True)
class LastRows(Mask):
    """All keys for the last n positions: i >= keys - n. A decoding step is among them and sees everything."""

    n: int

    def __post_init__(self):
        at_least(self, 1, n=self.n)

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """i >= keys - n."""
        return q >= extent.keys - self.n

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """The last row is one."""
        return rows.last >= extent.keys - self.n

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """The first row is one."""
        return rows.first >= extent.keys - self.n

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """All or none."""
        return torch.arange(self.row_bound(q, head, extent))

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """All or none."""
        return extent.keys if q >= extent.keys - self.n else 0
