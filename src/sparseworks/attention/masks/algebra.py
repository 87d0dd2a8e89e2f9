"""Masks of masks: intersection, union, complement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from sparseworks.attention.masks.base import MASKS, Extent, Mask, Span
from sparseworks.attention.masks.columns import Sink
from sparseworks.attention.masks.windows import Causal
from sparseworks.core.errors import PatternError


def _all(parts: tuple[Mask, ...], ask: Callable[[Mask], Tensor]) -> Tensor:
    return reduce(torch.logical_and, (ask(p) for p in parts))


def _any(parts: tuple[Mask, ...], ask: Callable[[Mask], Tensor]) -> Tensor:
    return reduce(torch.logical_or, (ask(p) for p in parts))


class AnyOf(Mask):
    """Kept by at least one of `parts`: base of whatever is a union."""

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
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

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
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

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
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
