"""The blocks of a call as ranges of positions, decided some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError

if TYPE_CHECKING:
    from sparseworks.attention.masks.base import Mask

_CHUNK = 1 << 17
"""Blocks decided at a time, over all heads."""
_PAIRS = 1 << 20
"""Pairs looked at one by one at a time."""


@dataclass(frozen=True)
class Extent:
    """What a rule may ask besides positions: how many keys there are, and how many heads."""

    keys: int
    heads: int = 1


@dataclass(frozen=True)
class Span:
    """Ranges of positions, first and last included: (rows, 1) for queries, (1, columns) for keys."""

    first: Int[Tensor, "..."]
    last: Int[Tensor, "..."]


class Grid:
    """The blocks of a call, and their ranges of positions."""

    def __init__(self, queries: int, keys: int, tile: tuple[int, int], offset: int):
        if min(tile) < 1:
            raise ShapeError(f"A block has at least one query and one key, got tile={tile}.")
        self.tile = tile
        self.rows, self.cols = _span(queries, tile[0], offset), _span(keys, tile[1], 0)

    def decide(self, rule: Callable[..., Tensor], head: Tensor, extent: Extent) -> Bool[Tensor, "heads rows cols"]:
        """`rule` for every block, some rows of blocks at a time: no tensor but the answer grows with their number."""
        rows, cols = len(self.rows.first), len(self.cols.first)
        out = torch.zeros(len(head), rows, cols, dtype=torch.bool)
        wide = Span(self.cols.first[None], self.cols.last[None])
        step = max(1, _CHUNK // max(1, len(head) * cols))
        for i in range(0, rows if cols else 0, step):
            tall = Span(self.rows.first[i : i + step, None], self.rows.last[i : i + step, None])
            out[:, i : i + step] = rule(tall, wide, head, extent)
        return out

    def settle(
        self, mask: Mask, doubtful: Tensor, head: Tensor, extent: Extent, reduce: Callable[..., Tensor]
    ) -> Bool[Tensor, " doubtful"]:
        """any or all over the pairs of each doubtful block; positions past the end repeat the last."""
        found = []
        for at in doubtful.nonzero().split(max(1, _PAIRS // (self.tile[0] * self.tile[1]))):
            h, i, j = at.unbind(1)
            q = _positions(self.rows, i, self.tile[0])[:, :, None]
            k = _positions(self.cols, j, self.tile[1])[:, None, :]
            kept = mask.keeps(q, k, head.flatten()[h][:, None, None], extent).expand(len(at), *self.tile)
            found.append(reduce(kept.flatten(1), 1))
        return torch.cat(found)


def _span(length: int, size: int, offset: int) -> Span:
    first = torch.arange(0, length, size)
    return Span(first + offset, (first + size).clamp(max=length) - 1 + offset)


def _positions(span: Span, block: Tensor, size: int) -> Tensor:
    return torch.minimum(span.first[block][:, None] + torch.arange(size), span.last[block][:, None])
