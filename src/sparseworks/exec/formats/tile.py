"""`tile`: any support at many rows of input. Rows are cut into K-blocks so that the input tile a block reads stays in L1."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.formats.segments import (
    masked,
    padding,
    real_entries,
    rounded,
    scatter,
    segment_of,
    too_many,
)

_K_BLOCK = 128
_ROW_BLOCK = 256
_UNROLL = 2


class Tile(Format):
    """Parts: `columns` (8-bit, within the K-block), `values`, `ptr` (segments + 1), `rows` (8-bit, within the row block).

    A segment is one row's part in one K-block. Order: row block, K-block, then rows by falling count, so that the
    trip counts of a kernel's inner loop are predictable. Segments are padded to 2 entries, see `segments`.
    Meta: `k_block`, `row_block`.
    """

    registered_name = "tile"

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        refusal = super().refuses(support, dtype)
        return refusal or too_many(support.count + _UNROLL * support.shape[0] * -(-support.shape[1] // _K_BLOCK))

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        values, mask = masked(self, weight, support, dtype), support.mask()
        grid = _Grid(support.shape[0], support.shape[1])
        counts = _counts(mask)
        order = grid.order(counts)
        row, column = mask.nonzero(as_tuple=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.numel())
        entry = rank[row * grid.k_blocks + column // _K_BLOCK].argsort(stable=True)
        ptr, source, real = padding(counts.flatten()[order], _UNROLL)
        picked = entry[source]
        parts = {
            "columns": (column % _K_BLOCK)[picked].to(torch.uint8),
            "values": values[mask][picked].where(real, torch.zeros((), dtype=dtype)),
            "ptr": ptr.to(torch.int32),
            "rows": (order // max(grid.k_blocks, 1) % grid.row_block).to(torch.uint8),
        }
        meta = {"k_block": _K_BLOCK, "row_block": grid.row_block}
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts, meta)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        grid = _Grid(*packed.shape, packed.meta["row_block"], packed.meta["k_block"])
        ptr = packed.parts["ptr"].long()
        local = packed.parts["columns"].long()
        real = real_entries(ptr, local)
        segment = segment_of(ptr)[real]
        rows = grid.first_row(segment) + packed.parts["rows"].long()[segment]
        columns = grid.first_column(segment) + local[real]
        return scatter(packed.shape, rows, columns, packed.parts["values"][real])

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        counts = _counts(support.mask())
        slots = int(rounded(counts, _UNROLL).sum())
        return slots * (1 + dtype.itemsize) + (counts.numel() + 1) * 4 + counts.numel()


class _Grid:
    """How a matrix is cut: row blocks of at most 256 rows (an even number of them, for two threads), K-blocks inside."""

    def __init__(self, out: int, width: int, row_block: int = 0, k_block: int = _K_BLOCK):
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


def _counts(mask: Bool[Tensor, "out in"]) -> Int[Tensor, "out k_blocks"]:
    """Kept entries of each row in each K-block."""
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[1] % _K_BLOCK))
    return padded.reshape(mask.shape[0], padded.shape[1] // _K_BLOCK, _K_BLOCK).sum(dim=-1)


FORMATS.register(Tile.registered_name)(Tile())
