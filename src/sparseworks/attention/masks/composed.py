"""Masks with a name of their own that are made of simpler ones: frames, powers of two over blocks, verticals and slashes."""

from __future__ import annotations

from dataclasses import dataclass

from sparseworks.attention.masks.algebra import AnyOf
from sparseworks.attention.masks.base import MASKS, Mask, at_least
from sparseworks.attention.masks.columns import Columns
from sparseworks.attention.masks.units import Coarse
from sparseworks.attention.masks.windows import Band, Offsets, Powers


@MASKS.register("frame_band")
@dataclass(frozen=True)
class FrameBand(Coarse):
    """|i // tokens - j // tokens| < frames: a window of whole frames of a video, or of whole blocks."""

    tokens: int
    frames: int

    def __post_init__(self):
        at_least(self, 1, tokens=self.tokens, frames=self.frames)

    @property
    def unit(self) -> int:  # type: ignore[override]
        """Tokens of a frame."""
        return self.tokens

    @property
    def inner(self) -> Mask:
        """A band over frames."""
        return Band(self.frames)


@MASKS.register("power_of_two")
@dataclass(frozen=True)
class PowerOfTwo(Coarse):
    """i // unit - j // unit is 0 or a power of two: log2 n keys a row, and L layers reach every sum of L powers.

    Source: Chen et al., 2025, arXiv 2503.03588 (PowerAttention).
    """

    unit: int = 1

    def __post_init__(self):
        at_least(self, 1, unit=self.unit)

    @property
    def inner(self) -> Mask:
        """Powers over units."""
        return Powers()


@MASKS.register("vertical_slash")
@dataclass(frozen=True)
class VerticalSlash(AnyOf):
    """j is one of `verticals` or i - j one of `slashes` (Jiang et al., 2024, arXiv 2407.02490)."""

    verticals: tuple[int, ...]
    slashes: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "verticals", Columns(self.verticals).listed)
        object.__setattr__(self, "slashes", Offsets(self.slashes).offsets)

    @classmethod
    def example(cls) -> VerticalSlash:
        """Two verticals and three slashes."""
        return cls((0, 11), (0, 1, 6))

    @property
    def parts(self) -> tuple[Mask, ...]:
        """Verticals and slashes."""
        return Columns(self.verticals), Offsets(self.slashes)
