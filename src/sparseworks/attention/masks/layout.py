"""Masks of how tokens are laid out: packed documents, prefixes, neighbourhoods on a grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod

import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.attention.masks.base import MASKS, Extent, Mask, Span, at_least
from sparseworks.core.errors import PatternError, ShapeError


@MASKS.register("prefix")
@dataclass(frozen=True)
class Prefix(Mask):
    """j <= i or j < n: the first n tokens see each other, the rest is causal (Raffel et al., 2019, arXiv 1910.10683)."""

    n: int

    def __post_init__(self):
        at_least(self, 0, n=self.n)

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """j <= max(i, n - 1)."""
        return k <= q.clamp(min=self.n - 1)

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """The last row reaches the first column."""
        return cols.first <= rows.last.clamp(min=self.n - 1)

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """The first row reaches the last column."""
        return cols.last <= rows.first.clamp(min=self.n - 1)

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """0 ... max(q, n - 1)."""
        return torch.arange(self.row_bound(q, head, extent))

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """Exact."""
        return min(extent.keys, max(q + 1, self.n))


@MASKS.register("document")
@dataclass(frozen=True)
class Document(Mask):
    """i and j lie in the same of documents of `lengths` tokens, one behind the other; what follows the last is one more."""

    lengths: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "lengths", tuple(self.lengths))
        for length in self.lengths:
            at_least(self, 1, lengths=length)

    @classmethod
    def example(cls) -> Document:
        """Three documents, and the rest."""
        return cls((5, 1, 12))

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """The same document."""
        return self._of(q) == self._of(k)

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """The documents of the rows and of the columns overlap."""
        return (self._of(rows.first) <= self._of(cols.last)) & (self._of(cols.first) <= self._of(rows.last))

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """All lie in one document."""
        first = torch.minimum(self._of(rows.first), self._of(cols.first))
        return first == torch.maximum(self._of(rows.last), self._of(cols.last))

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """The query's document."""
        ends = [0, *torch.tensor(self.lengths, dtype=torch.long).cumsum(0).tolist(), max(q + 1, extent.keys)]
        first, last = next((a, b) for a, b in pairwise(ends) if a <= q < b)
        return torch.arange(min(first, extent.keys), min(last, extent.keys))

    def _of(self, x: Tensor) -> Tensor:
        table = _documents(self.lengths).to(x.device)
        return table[x.clamp(max=len(table) - 1)]


@lru_cache(maxsize=64)
def _documents(lengths: tuple[int, ...]) -> Int[Tensor, " tokens+1"]:
    """The document of each token, and of the first behind them."""
    return torch.repeat_interleave(torch.tensor([*lengths, 1]))


@MASKS.register("neighbourhood")
@dataclass(frozen=True)
class Neighbourhood(Mask):
    """Tokens of a grid, last axis fastest, that lie in a box of `window` round the query; at an edge the box is moved inside.

    On every axis the keys of coordinate i are s ... s + window - 1, s = clamp(i - window // 2, 0, length - window).

    Source: Hassani et al., 2022, arXiv 2204.07143 (neighbourhood attention).
    """

    shape: tuple[int, ...]
    window: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "window", tuple(self.window))
        fits = len(self.shape) == len(self.window) > 0
        if not fits or not all(1 <= w <= s for w, s in zip(self.window, self.shape, strict=True)):
            raise PatternError(f"A window of {self.window} does not fit into a grid of {self.shape}.")

    @classmethod
    def example(cls) -> Neighbourhood:
        """Windows of 2 x 3 x 3 on a grid large enough for the suite."""
        return cls((8, 5, 6), (2, 3, 3))

    def check(self, end: int, extent: Extent) -> None:
        """Queries and keys lie on the grid."""
        if max(end, extent.keys) > prod(self.shape):
            raise ShapeError(f"A grid of {self.shape} has {prod(self.shape)} tokens, not {max(end, extent.keys)}.")

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """Inside the box on every axis."""
        kept = q == q
        for axis, (i, j) in enumerate(zip(self._coordinates(q), self._coordinates(k), strict=True)):
            start = self._start(axis, i)
            kept = kept & (j >= start) & (j < start + self.window[axis])
        return kept

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """A run of tokens is a few boxes of the grid; two boxes hold a kept pair when they do on every axis."""
        kept = torch.zeros((), dtype=torch.bool)
        for (tall, there), (wide, here) in product(self._boxes(rows), self._boxes(cols)):
            meet = there & here
            for axis, ((a, b), (c, d)) in enumerate(zip(tall, wide, strict=True)):
                meet = meet & (self._start(axis, a) <= d) & (c < self._start(axis, b) + self.window[axis])
            kept = kept | meet
        return kept

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """All pairs are kept when on every axis all pairs of coordinates are, and there the outermost decide."""
        kept = torch.ones((), dtype=torch.bool)
        for axis, ((a, b), (c, d)) in enumerate(zip(self._shadow(rows), self._shadow(cols), strict=True)):
            kept = kept & (self._start(axis, b) <= c) & (d < self._start(axis, a) + self.window[axis])
        return kept

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """The box, line by line."""
        keys = torch.zeros(1, dtype=torch.long)
        for axis, i in enumerate(self._coordinates(torch.tensor(q))):
            along = self._start(axis, i) + torch.arange(self.window[axis])
            keys = (keys[:, None] * self.shape[axis] + along).flatten()
        return keys[keys < extent.keys]

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """The box."""
        return min(extent.keys, prod(self.window))

    def _start(self, axis: int, i: Tensor) -> Tensor:
        return (i - self.window[axis] // 2).clamp(0, self.shape[axis] - self.window[axis])

    def _coordinates(self, x: Tensor, axes: int | None = None) -> list[Tensor]:
        found: list[Tensor] = []
        for length in reversed(self.shape[1:axes]):
            found.append(x % length)
            x = x // length
        return [x, *reversed(found)]

    def _shadow(self, span: Span) -> Iterator[tuple[Tensor, Tensor]]:
        """Per axis the least and the greatest coordinate of the tokens first ... last: all of it once a line is left."""
        for axis, length in enumerate(self.shape):
            below = prod(self.shape[axis + 1 :])
            first, last = span.first // below, span.last // below
            same = first // length == last // length
            yield torch.where(same, first % length, 0), torch.where(same, last % length, length - 1)

    def _boxes(self, span: Span) -> Iterator[tuple[list[tuple[Tensor, Tensor]], Tensor]]:
        """Tokens first ... last as boxes: the ends of lines, the ends of planes, ..., and whether the box is not empty."""
        first, last, there = span.first, span.last, torch.ones((), dtype=torch.bool)
        whole: list[tuple[Tensor, Tensor]] = []
        for axes in range(len(self.shape), 1, -1):
            length = self.shape[axes - 1]
            line, end = first // length, last // length
            head_end = torch.where(line == end, last % length, length - 1)
            yield [*self._point(line, axes - 1), (first % length, head_end), *whole], there & (first <= last)
            yield [*self._point(end, axes - 1), (last * 0, last % length), *whole], there & (line < end)
            first, last = line + 1, end - 1
            whole = [(last * 0, last * 0 + length - 1), *whole]
        yield [(first, last), *whole], there & (first <= last)

    def _point(self, line: Tensor, axes: int) -> list[tuple[Tensor, Tensor]]:
        return [(c, c) for c in self._coordinates(line, axes)]
