"""Masks of masks: intersection, union, complement, one a head, and a mask in units of several tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from sparseworks.attention.masks.base import MASKS, Extent, Mask, Span, at_least
from sparseworks.attention.masks.columns import Sink
from sparseworks.attention.masks.windows import Causal, Window
from sparseworks.core.errors import PatternError, ShapeError


def _all(parts: tuple[Mask, ...], ask: Callable[[Mask], Tensor]) -> Tensor:
    return reduce(torch.logical_and, (ask(p) for p in parts))


def _any(parts: tuple[Mask, ...], ask: Callable[[Mask], Tensor]) -> Tensor:
    return reduce(torch.logical_or, (ask(p) for p in parts))


class AnyOf(Mask):
    """Kept by at least one of `parts`: base of whatever is a union."""

    def keeps(self, q, k, head, extent):
        """Any part keeps the pair."""
        return _any(self.parts, lambda m: m.keeps(q, k, head, extent))

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Any part keeps a pair: exact where the parts are."""
        return _any(self.parts, lambda m: m.some(rows, cols, head, extent))

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """One part keeps all pairs; blocks that only several fill together are left out."""
        return _any(self.parts, lambda m: m.every(rows, cols, head, extent))

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """The parts' keys, once each."""
        return torch.cat([m.row(q, head, extent) for m in self.parts]).unique()

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """Their sum."""
        return min(extent.keys, sum(m.row_bound(q, head, extent) for m in self.parts))

    @property
    def exact_some(self) -> bool:
        """Where the parts are."""
        return all(m.exact_some for m in self.parts)

    @property
    def exact_every(self) -> bool:
        """Only for a union of one."""
        return len(self.parts) == 1 and self.parts[0].exact_every


@dataclass(frozen=True)
class _Several(Mask):
    masks: tuple[Mask, ...]

    def __post_init__(self):
        masks = tuple(m for mask in self.masks for m in (mask.masks if type(mask) is type(self) else (mask,)))  # type: ignore[union-attr]
        if not masks:
            raise PatternError(f"{type(self).__name__} is made of at least one mask.")
        object.__setattr__(self, "masks", masks)

    @classmethod
    def example(cls) -> Any:
        """Of two masks."""
        return cls((Causal(), Sink(2)))

    @property
    def parts(self) -> tuple[Mask, ...]:
        """The masks."""
        return self.masks


@MASKS.register("any")
@dataclass(frozen=True)
class Union(AnyOf, _Several):
    """Kept by at least one of the masks: `a | b`."""


@MASKS.register("all")
@dataclass(frozen=True)
class Intersection(_Several):
    """Kept by every mask: `a & b`."""

    def keeps(self, q, k, head, extent):
        """All parts keep the pair."""
        return _all(self.masks, lambda m: m.keeps(q, k, head, extent))

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Every part keeps a pair, which need not be the same: a superset."""
        return _all(self.masks, lambda m: m.some(rows, cols, head, extent))

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """All parts keep all pairs."""
        return _all(self.masks, lambda m: m.every(rows, cols, head, extent))

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """The keys of the part that keeps fewest, as far as the others keep them."""
        fewest, *others = sorted(self.masks, key=lambda m: m.row_bound(q, head, extent))
        keys = fewest.row(q, head, extent)
        for mask in others:
            keys = keys[mask.keeps(torch.tensor(q), keys, torch.tensor(head), extent).expand(keys.shape)]
        return keys

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """Their least."""
        return min(m.row_bound(q, head, extent) for m in self.masks)

    @property
    def exact_some(self) -> bool:
        """Only for an intersection of one."""
        return len(self.masks) == 1 and self.masks[0].exact_some

    @property
    def exact_every(self) -> bool:
        """Where the parts are."""
        return all(m.exact_every for m in self.masks)


@MASKS.register("not")
@dataclass(frozen=True)
class Complement(Mask):
    """What the mask does not keep: `~a`."""

    part: Mask

    @classmethod
    def example(cls) -> Complement:
        """The future."""
        return cls(Causal())

    @property
    def parts(self) -> tuple[Mask, ...]:
        """The mask."""
        return (self.part,)

    def keeps(self, q, k, head, extent):
        """The mask does not keep the pair."""
        return ~self.part.keeps(q, k, head, extent)

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """The mask does not keep all."""
        return ~self.part.every(rows, cols, head, extent)

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """The mask keeps nothing."""
        return ~self.part.some(rows, cols, head, extent)

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """All other keys."""
        kept = torch.ones(extent.keys, dtype=torch.bool)
        kept[self.part.row(q, head, extent)] = False
        return kept.nonzero().flatten()

    @property
    def exact_some(self) -> bool:
        """Where the mask's whole blocks are."""
        return self.part.exact_every

    @property
    def exact_every(self) -> bool:
        """Where the mask's blocks are."""
        return self.part.exact_some


@MASKS.register("per_head")
@dataclass(frozen=True)
class PerHead(Mask):
    """Mask number h // (heads / masks) for head h: one each, or one for each group of heads that share keys."""

    masks: tuple[Mask, ...]

    def __post_init__(self):
        object.__setattr__(self, "masks", tuple(self.masks))
        if not self.masks:
            raise PatternError("PerHead has at least one mask.")

    @classmethod
    def example(cls) -> PerHead:
        """Two heads."""
        return cls((Causal(), Window(3)))

    @property
    def parts(self) -> tuple[Mask, ...]:
        """The masks."""
        return self.masks

    @property
    def by_head(self) -> bool:
        """Heads differ."""
        return True

    def check(self, end: int, extent: Extent) -> None:
        """Heads must be a multiple of the masks."""
        if extent.heads % len(self.masks):
            raise ShapeError(
                f"{extent.heads} heads cannot share {len(self.masks)} masks; give `heads` a multiple of it."
            )
        super().check(end, extent)

    def keeps(self, q, k, head, extent):
        """Pointwise, so that heads may come in any shape."""
        which = head // (extent.heads // len(self.masks))
        kept = self.masks[0].keeps(q, k, head, extent)
        for i, mask in enumerate(self.masks[1:], 1):
            kept = torch.where(which == i, mask.keeps(q, k, head, extent), kept)
        return kept

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Head by head."""
        return self._stacked(head, extent, lambda m, h: m.some(rows, cols, h, extent), rows, cols)

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Head by head."""
        return self._stacked(head, extent, lambda m, h: m.every(rows, cols, h, extent), rows, cols)

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """Of the head's mask."""
        return self._of(head, extent).row(q, head, extent)

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """Of the head's mask."""
        return self._of(head, extent).row_bound(q, head, extent)

    @property
    def exact_some(self) -> bool:
        """Where the masks are."""
        return all(m.exact_some for m in self.masks)

    @property
    def exact_every(self) -> bool:
        """Where the masks are."""
        return all(m.exact_every for m in self.masks)

    def _of(self, head: int, extent: Extent) -> Mask:
        return self.masks[head // (extent.heads // len(self.masks))]

    def _stacked(self, head: Tensor, extent: Extent, ask, rows: Span, cols: Span) -> Tensor:
        shape = 1, len(rows.first), cols.first.shape[-1]
        return torch.cat([ask(self._of(int(h), extent), h[None]).expand(shape) for h in head])


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

    def keeps(self, q, k, head, extent):
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
