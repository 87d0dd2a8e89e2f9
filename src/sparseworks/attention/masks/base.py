"""Mask: which pairs of queries and keys a static pattern keeps, answered for blocks from index ranges, never from an n x n mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.attention.masks.grid import Extent, Grid, Span
from sparseworks.core.config import NOUNS
from sparseworks.core.errors import PatternError, ShapeError
from sparseworks.core.registry import Registry
from sparseworks.core.support import Support

if TYPE_CHECKING:
    from sparseworks.attention.masks.algebra import Intersection, Union

MASKS: Registry[type[Mask]] = Registry("mask", "sparseworks.attention.masks")


class Mask:
    """A set of (head, query, key); base of frozen dataclasses, combined with `&`, `|`, `~`.

    Parameters are in tokens. Query i of a call sits at position `offset + i`, keys at 0, 1, ...: a decoding step is
    `queries=1, offset=keys - 1`. A mask states `keeps` for pairs, `some` and `every` for blocks, `row` for one query.
    """

    registered_name: ClassVar[str]

    # -- what a mask states -------------------------------------------------------------------------------------------

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Bool[Tensor, "..."]:
        """Whether key k is kept for query q; positions and heads broadcast against each other."""
        raise NotImplementedError

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Bool[Tensor, "..."]:
        """Whether rows x cols holds a kept pair; never False where it does. Exact where `exact_some`."""
        raise NotImplementedError

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Bool[Tensor, "..."]:
        """Whether all pairs of rows x cols are kept; never True where not. Exact where `exact_every`."""
        raise NotImplementedError

    def row(self, q: int, head: int, extent: Extent) -> Int[Tensor, " kept"]:
        """Kept keys of one query, ascending."""
        raise NotImplementedError

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """At most so many keys are kept for the query."""
        return extent.keys

    @property
    def parts(self) -> tuple[Mask, ...]:
        """The masks this one is made of."""
        return ()

    @property
    def by_head(self) -> bool:
        """Whether heads differ."""
        return any(p.by_head for p in self.parts)

    @property
    def exact_some(self) -> bool:
        """Whether `some` is exact rather than a superset."""
        return True

    @property
    def exact_every(self) -> bool:
        """Whether `every` is exact rather than a subset."""
        return True

    def check(self, end: int, extent: Extent) -> None:
        """Raise ShapeError for queries up to position `end`, keys or heads the mask is not made for."""
        for part in self.parts:
            part.check(end, extent)

    # -- what a caller asks ---------------------------------------------------------------------------------------------

    def pairs(self, queries: int, keys: int, heads: int = 1, offset: int = 0) -> Bool[Tensor, "heads queries keys"]:
        """Every pair, token by token (one head where all are alike): for references, at small sizes.

        Raises:
            ShapeError: sizes that are negative or that the mask is not made for.
        """
        head, extent = self._begin(queries, keys, heads, offset)
        q, k = torch.arange(offset, offset + queries)[:, None], torch.arange(keys)[None]
        return self.keeps(q, k, head, extent).expand(len(head), queries, keys).contiguous()

    def blocks(
        self,
        queries: int,
        keys: int,
        tile: tuple[int, int] = (64, 64),
        heads: int = 1,
        offset: int = 0,
        *,
        exact: bool = False,
    ) -> Support:
        """Blocks of `tile` (queries, keys) that hold a kept pair, over (heads or 1, query blocks, key blocks).

        From index ranges: exact for every primitive and for unions of them; below `&` and `~` it may hold blocks without a
        kept pair, unless `exact` has the undecided ones looked at token by token. The last blocks may be shorter.

        Raises:
            ShapeError: sizes that are negative or that the mask is not made for.
        """
        head, extent = self._begin(queries, keys, heads, offset)
        grid = Grid(queries, keys, tile, offset)
        kept = grid.decide(self.some, head, extent)
        if exact and not self.exact_some:
            doubtful = kept & ~grid.decide(self.every, head, extent)
            kept[doubtful] = grid.settle(self, doubtful, head, extent, Tensor.any)
        return Support.from_mask(kept)

    def whole_blocks(
        self,
        queries: int,
        keys: int,
        tile: tuple[int, int] = (64, 64),
        heads: int = 1,
        offset: int = 0,
        *,
        exact: bool = False,
    ) -> Support:
        """Blocks in which every pair is kept; below `|` and `~` some may be missing, unless `exact`. Else as `blocks`."""
        head, extent = self._begin(queries, keys, heads, offset)
        grid = Grid(queries, keys, tile, offset)
        whole = grid.decide(self.every, head, extent)
        if exact and not self.exact_every:
            doubtful = grid.decide(self.some, head, extent) & ~whole
            whole[doubtful] = grid.settle(self, doubtful, head, extent, Tensor.all)
        return Support.from_mask(whole)

    def columns(self, query: int, keys: int, head: int = 0, heads: int = 1) -> Int[Tensor, " kept"]:
        """Kept keys of the query at position `query`, ascending; time and memory O(kept log keys).

        Raises:
            ShapeError: sizes that are negative or that the mask is not made for.
        """
        _, extent = self._begin(1, keys, heads, query)
        if not 0 <= head < heads:
            raise ShapeError(f"There is no head {head} among {heads}.")
        return self.row(query, head, extent)

    def lists(self, query: int, keys: int, heads: int = 1) -> tuple[Int[Tensor, " lists+1"], Int[Tensor, " kept"]]:
        """`(ptr, idx)` of kept keys for every head, as `attend_tokens` takes them. Raises as `columns`."""
        listed = [self.columns(query, keys, h, heads) for h in range(heads)]
        return torch.tensor([0] + [len(row) for row in listed]).cumsum(0), torch.cat(listed)

    def mask_mod(self, keys: int, heads: int = 1, offset: int = 0) -> Callable[[Any, Any, Any, Any], Tensor]:
        """`(batch, head, query, key) -> kept` as FlexAttention asks it. Raises ShapeError for heads that do not fit."""
        _, extent = self._begin(1, keys, heads, offset)

        def keeps(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return self.keeps(q + offset, k, h, extent)

        return keeps

    def draw(self, tokens: int = 1024, tile: tuple[int, int] = (64, 64), heads: int = 1) -> Any:
        """A matplotlib figure of the blocks, one panel a head: whole, partly kept, not kept."""
        from sparseworks.attention.masks.draw import draw

        return draw(self, tokens, tile, heads)

    # -- algebra ----------------------------------------------------------------------------------------------------

    def __and__(self, other: Mask) -> Intersection:
        from sparseworks.attention.masks.algebra import Intersection

        return Intersection((self, other))

    def __or__(self, other: Mask) -> Union:
        from sparseworks.attention.masks.algebra import Union

        return Union((self, other))

    def __invert__(self) -> Mask:
        from sparseworks.attention.masks.algebra import Complement

        return self.part if isinstance(self, Complement) else Complement(self)

    def _begin(self, queries: int, keys: int, heads: int, offset: int) -> tuple[Tensor, Extent]:
        if min(queries, keys, offset) < 0 or heads < 1:
            raise ShapeError(
                f"A mask has sizes of at least 0 and a head: queries={queries}, keys={keys}, heads={heads}, offset={offset}."
            )
        extent = Extent(keys, heads)
        self.check(offset + queries, extent)
        return torch.arange(heads if self.by_head else 1)[:, None, None], extent


NOUNS["mask"] = (Mask, MASKS)


def at_least(mask: Mask, least: int, **sizes: int) -> None:
    """Raise PatternError unless every size is a whole number of at least `least`."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            raise PatternError(
                f"`{name}` of {type(mask).__name__} is a whole number of at least {least}, got {size!r}."
            )
