"""Grid: how `tile` and `pairs` cut a matrix of cells, and the order in which its segments are stored.

A segment is one row's part in one K-block. Order: row block, K-block, then rows by falling count, so that the trip counts of
a kernel's inner loop are predictable. Segments are padded to 2 entries, see `segments`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import Packed, number
from sparseworks.exec.formats.segments import padding, real_entries, rounded, segment_of, too_many

K_BLOCK = 96
UNROLL = 2
_ROW_BLOCK = 256


@dataclass(frozen=True)
class Segments:
    """The cells of a matrix in storage order.

    Attributes:
        parts: `columns` (8-bit, within the K-block), `ptr` (segments + 1), `rows` (8-bit, within the row block).
        picked: for every slot, which cell it holds, counted row by row.
        real: False where a slot is padding.
        row_block: rows in a row block.
    """

    parts: dict[str, Tensor]
    picked: Int[Tensor, " slots"]
    real: Bool[Tensor, " slots"]
    row_block: int


def segments_of(cells: Bool[Tensor, "out width"], k_block: int = K_BLOCK) -> Segments:
    """The segments into which a mask of cells is cut."""
    grid, counts = Grid(*cells.shape, k_block=k_block), _counts(cells, k_block)
    order = grid.order(counts)
    row, column = cells.nonzero(as_tuple=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel())
    entry = rank[row * grid.k_blocks + column // k_block].argsort(stable=True)
    ptr, source, real = padding(counts.flatten()[order], UNROLL)
    picked = entry[source]
    parts = {
        "columns": (column % k_block)[picked].to(torch.uint8),
        "ptr": ptr.to(torch.int32),
        "rows": (order // max(grid.k_blocks, 1) % grid.row_block).to(torch.uint8),
    }
    return Segments(parts, picked, real, grid.row_block)


def cells_of(
    grid: Grid, ptr: Int[Tensor, " segments+1"], columns: Int[Tensor, " slots"], rows: Int[Tensor, " segments"]
) -> tuple[Bool[Tensor, " slots"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Which slots are cells, and the row and column of each."""
    local = columns.long()
    real = real_entries(ptr.long(), local)
    segment = segment_of(ptr)[real]
    return real, grid.first_row(segment) + rows.long()[segment], grid.first_column(segment) + local[real]


def block_sizes(packed: Packed) -> tuple[int, int]:
    """`(row_block, k_block)` of a packed form, numbers within them being 8-bit.

    Raises:
        KernelError: they are missing or out of range.
    """
    return number(packed, "row_block", 1, 256), number(packed, "k_block", 1, 256)


def slots(cells: Bool[Tensor, "out width"], k_block: int = K_BLOCK) -> tuple[int, int]:
    """`(slots, segments)` that `segments_of` makes."""
    counts = _counts(cells, k_block)
    return int(rounded(counts, UNROLL).sum()), counts.numel()


def refused(support: Support, width: int) -> str | None:
    """Why a support cannot be cut into `width` cells a row, or None."""
    return too_many(support.count + UNROLL * support.shape[0] * -(-width // K_BLOCK))


class Grid:
    """Row blocks of at most 256 rows (an even number of them, for two threads), K-blocks inside."""

    def __init__(self, out: int, width: int, row_block: int = 0, k_block: int = K_BLOCK):
        blocks = max(1, -(-out // _ROW_BLOCK))
        blocks += blocks % 2 if out >= 64 else 0
        self.out, self.width, self.k_block = out, width, k_block
        self.row_block = row_block or max(1, -(-out // blocks))
        self.k_blocks = -(-width // k_block)

    def order(self, counts: Int[Tensor, "out k_blocks"]) -> Int[Tensor, " segments"]:
        """Segments (row * k_blocks + k_block) in storage order."""
        row = torch.arange(self.out)[:, None].expand_as(counts)
        block = torch.arange(self.k_blocks).expand_as(counts)
        group = row // self.row_block * self.k_blocks + block
        return (group * (self.k_block + 1) + self.k_block - counts).flatten().argsort(stable=True)

    def _group(self, segment: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        block = segment // max(self.row_block * self.k_blocks, 1)
        height = torch.clamp(self.out - block * self.row_block, max=self.row_block)
        return block, (segment - block * self.row_block * self.k_blocks) // height

    def first_row(self, segment: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """First row of the segment's row block."""
        return self._group(segment)[0] * self.row_block

    def first_column(self, segment: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """First column of the segment's K-block."""
        return self._group(segment)[1] * self.k_block


def _counts(cells: Bool[Tensor, "out width"], k_block: int) -> Int[Tensor, "out k_blocks"]:
    """Cells of each row in each K-block."""
    padded = torch.nn.functional.pad(cells, (0, -cells.shape[1] % k_block))
    return padded.reshape(cells.shape[0], padded.shape[1] // k_block, k_block).sum(dim=-1)
