"""Cut: a support in the order in which sparse training reads it, for one direction of the product.

Rows are cut into row blocks, columns into K-blocks. A cell is one K-block of one row block, a segment one row's part of a cell.
Entries are ordered by row block, K-block, then rows by falling count, columns ascending, without padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.core.errors import CheckpointError
from sparseworks.exec.formats.grid import Grid
from sparseworks.exec.formats.segments import pointers, segment_of
from sparseworks.exec.native import native

K_BLOCK = 192
"""Inputs of a K-block: 192 inputs of 64 tokens take 48 KiB, so a part comes from L2, but segments are twice as long as those
that would fit L1; measured best at 2 to 10 % of weights kept."""


class Rows(NamedTuple):
    """A support in row order: the columns of row n are `columns[ptr[n] : ptr[n + 1]]`, ascending (int32)."""

    ptr: Int[Tensor, " rows+1"]
    columns: Int[Tensor, " entries"]
    shape: tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """One support in reading order.

    Attributes:
        columns: of each entry, within its K-block (uint8).
        count: entries of each segment (uint8).
        rows: row of each segment, within its row block (uint8).
        first: first entry of each cell, and the total (int32).
        shape: rows and columns.
        row_block: rows of a row block.
    """

    columns: Int[Tensor, " entries"]
    count: Int[Tensor, " segments"]
    rows: Int[Tensor, " segments"]
    first: Int[Tensor, " cells+1"]
    shape: tuple[int, int]
    row_block: int

    @classmethod
    def of_parts(cls, columns: Tensor, count: Tensor, rows: Tensor, shape: tuple[int, int]) -> Cut:
        """The checked cut whose cells begin where the segments before them end.

        Raises:
            CheckpointError: buffers that do not describe a support in reading order.
        """
        grid = Grid(*shape, k_block=K_BLOCK)
        if count.dtype != torch.uint8 or count.shape != (shape[0] * grid.k_blocks,):
            raise _damaged("its buffers are of the wrong size or type")
        first = pointers(_cell_counts(grid, count)).int()
        made = cls(columns, count, rows, first, shape, grid.row_block)
        made.check()
        return made

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The buffers in the order in which kernels take them."""
        return self.columns, self.count, self.rows, self.first

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """What kernels take: addresses of the buffers, then sizes."""
        return (*(t.data_ptr() for t in self.tensors), *self.shape, self.row_block, K_BLOCK)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "addresses"}  # a copy has buffers of its own

    def in_row_order(self) -> tuple[Rows, Int[Tensor, " entries"]]:
        """The support in row order, whose entry e is entry `order[e]` here."""
        n, module = self.columns.numel(), native()
        ptr, columns, order = _int32(self.shape[0] + 1), _int32(n), _int32(n)
        if module is not None:
            module.uncut(*self.addresses, *_at(ptr, columns, order))
            return Rows(ptr, columns, self.shape), order
        row, column = self.coordinates()
        order = (row * self.shape[1] + column).argsort()
        ptr = pointers(torch.bincount(row, minlength=self.shape[0])).int()
        return Rows(ptr, column[order].int(), self.shape), order.int()

    def coordinates(self) -> tuple[Int[Tensor, " entries"], Int[Tensor, " entries"]]:
        """Row and column of every entry."""
        grid = Grid(*self.shape, self.row_block, K_BLOCK)
        segment = segment_of(pointers(self.count.long()))
        return (
            grid.first_row(segment) + self.rows.long()[segment],
            grid.first_column(segment) + self.columns.long(),
        )

    def check(self) -> None:
        """Everything that makes it safe to follow the buffers.

        Raises:
            CheckpointError: buffers that do not describe a support in reading order.
        """
        grid = Grid(*self.shape, self.row_block, K_BLOCK)
        segments, cells = self.shape[0] * grid.k_blocks, -(-self.shape[0] // self.row_block) * grid.k_blocks
        sizes = (self.columns.dim() == 1, self.count.numel() == segments, self.rows.numel() == segments)
        if not all((*sizes, self.first.numel() == cells + 1)) or int(self.count.sum()) != self.columns.numel():
            raise _damaged("its buffers are of the wrong size")
        if any(t.dtype != torch.uint8 for t in self.tensors[:3]) or self.first.dtype != torch.int32:
            raise _damaged("its buffers are of the wrong type")
        if not torch.equal(self.first.long(), pointers(_cell_counts(grid, self.count))):
            raise _damaged("cells do not begin where the entries before them end")
        of = _cells(grid)
        places = (of * 256 + self.rows.long()).sort().values - of * 256
        within = torch.arange(segments) - pointers(torch.bincount(of, minlength=cells))[of]
        if not torch.equal(places, within):
            raise _damaged("a cell does not hold every row once")
        row, column = self.coordinates()
        key = row * self.shape[1] + column
        segment = segment_of(pointers(self.count.long()))
        inside = (column < self.shape[1]) & (self.columns < K_BLOCK)
        rising = (key[1:] > key[:-1]) | (segment[1:] != segment[:-1])
        if not (bool(inside.all()) and bool(rising.all())):
            raise _damaged("columns lie outside of the matrix or do not rise")


def _cells(grid: Grid) -> Int[Tensor, " segments"]:
    """The cell of every segment."""
    tops = torch.arange(0, grid.out, grid.row_block)
    heights = torch.clamp(grid.out - tops, max=grid.row_block).repeat_interleave(grid.k_blocks)
    return torch.repeat_interleave(torch.arange(heights.numel()), heights)


def _cell_counts(grid: Grid, count: Int[Tensor, " segments"]) -> Int[Tensor, " cells"]:
    """Entries of every cell."""
    cells = -(-grid.out // grid.row_block) * grid.k_blocks
    return torch.zeros(cells, dtype=torch.long).index_add(0, _cells(grid), count.long())


def cut(rows: Rows) -> tuple[Cut, Int[Tensor, " entries"]]:
    """The support in reading order, whose entry e is entry `order[e]` in row order."""
    (out, width), n = rows.shape, rows.columns.numel()
    grid, module = Grid(out, width, k_block=K_BLOCK), native()
    cells = -(-out // grid.row_block) * grid.k_blocks
    if module is None:
        return _cut_by_sorting(rows, grid)
    columns, count, row_of = _bytes(n), _bytes(out * grid.k_blocks), _bytes(out * grid.k_blocks)
    first, order = _int32(cells + 1), _int32(n)
    sizes = (out, width, grid.row_block, K_BLOCK)
    module.cut(*_at(rows.ptr, rows.columns), *sizes, *_at(columns, count, row_of, first, order))
    return Cut(columns, count, row_of, first, rows.shape, grid.row_block), order


def transpose(rows: Rows) -> tuple[Rows, Int[Tensor, " entries"]]:
    """The transposed support, whose entry e is entry `order[e]` of `rows`."""
    (out, width), n, module = rows.shape, rows.columns.numel(), native()
    if module is None:
        order = rows.columns.argsort(stable=True)
        row = segment_of(rows.ptr)
        ptr = pointers(torch.bincount(rows.columns.long(), minlength=width)).int()
        return Rows(ptr, row[order].int(), (width, out)), order.int()
    ptr, columns, order = _int32(width + 1), _int32(n), _int32(n)
    module.transpose(*_at(rows.ptr, rows.columns), out, width, *_at(ptr, columns, order))
    return Rows(ptr, columns, (width, out)), order


def find(old: Rows, new: Rows) -> Int[Tensor, " entries"]:
    """For every entry of `new`: which entry of `old` it is, or -1."""
    module = native()
    if module is None:
        keys, wanted = (segment_of(r.ptr) * r.shape[1] + r.columns for r in (old, new))
        at = torch.searchsorted(keys, wanted).clamp(max=max(keys.numel() - 1, 0))
        return torch.where(keys[at] == wanted, at, -1).int() if keys.numel() else torch.full_like(new.columns, -1)
    found = _int32(new.columns.numel())
    module.find(*_at(old.ptr, old.columns, new.ptr, new.columns), *new.shape, found.data_ptr())
    return found


def relate(first: Int[Tensor, " n"], middle: Int[Tensor, " n"], last: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """`inverse[middle[last]]` with the inverse of the permutation `first`."""
    module = native()
    if module is None:
        inverse = torch.empty_like(first)
        inverse[first.long()] = torch.arange(first.numel(), dtype=torch.int32)
        return inverse[middle[last.long()].long()]
    result = torch.empty_like(first)
    module.relate(*_at(first, middle, last), first.numel(), result.data_ptr())
    return result


def trace(before: Int[Tensor, " old"], found: Int[Tensor, " new"], order: Int[Tensor, " new"]) -> Int[Tensor, " new"]:
    """`before[found[order]]`, or -1 where `found[order]` is."""
    module = native()
    if module is not None:
        result = torch.empty_like(found)
        module.trace(*_at(before, found, order), found.numel(), result.data_ptr())
        return result
    at = found[order.long()]
    known = before[at.clamp(min=0).long()] if before.numel() else at
    return torch.where(at >= 0, known, -1)


def _cut_by_sorting(rows: Rows, grid: Grid) -> tuple[Cut, Int[Tensor, " entries"]]:
    (out, _), row, column = rows.shape, segment_of(rows.ptr), rows.columns.long()
    place = row * grid.k_blocks + column // K_BLOCK
    counts = torch.bincount(place, minlength=out * grid.k_blocks).reshape(out, grid.k_blocks)
    order = grid.order(counts)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel())
    entries = rank[place].argsort(stable=True)
    count = counts.flatten()[order]
    block = order // max(grid.k_blocks, 1) // grid.row_block
    cell = block * grid.k_blocks + order % max(grid.k_blocks, 1)
    cells = -(-out // grid.row_block) * grid.k_blocks
    made = Cut(
        (column % K_BLOCK)[entries].to(torch.uint8),
        count.to(torch.uint8),
        (order // max(grid.k_blocks, 1) % grid.row_block).to(torch.uint8),
        pointers(torch.zeros(cells, dtype=torch.long).index_add(0, cell, count)).int(),
        rows.shape,
        grid.row_block,
    )
    return made, entries.int()


def blank(like: Cut, entries: int) -> Cut:
    """A cut of as many rows and columns as another, to be written to."""
    count, rows, first = (torch.empty_like(t) for t in like.tensors[1:])
    return Cut(_bytes(entries), count, rows, first, like.shape, like.row_block)


def _int32(n: int) -> Tensor:
    return torch.empty(n, dtype=torch.int32, device="cpu")


def _bytes(n: int) -> Tensor:
    return torch.empty(n, dtype=torch.uint8, device="cpu")


def _at(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in tensors)


def _damaged(reason: str) -> CheckpointError:
    return CheckpointError(
        f"The index of a sparse weight is damaged: {reason}. Load the file anew, or build it from the support."
    )
