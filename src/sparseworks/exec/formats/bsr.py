"""`bsr`: kept square blocks, block row by block row; for patterns that keep or drop whole tiles, and for tensor cores."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FLOATS, FORMATS, Format, Packed
from sparseworks.exec.formats.segments import masked, pointers

SIZES = (128, 64, 32, 16)


class Bsr(Format):
    """Parts: `blocks` (n, B, B), `columns` (n), block column of each, ascending in a block row; `ptr` (out / B + 1), first block of a block row.

    Meta: `block`, the largest B out of 128, 64, 32 and 16 that leaves no block partly kept.
    """

    registered_name = "bsr"
    dtypes = FLOATS

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        refusal = super().refuses(support, dtype)
        if refusal is None and _grid(support) is None:
            return "its kept entries are not whole aligned blocks of 16x16 or more"
        return refusal

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        values = masked(self, weight, support, dtype)
        block, kept = _grid(support) or (SIZES[-1], torch.zeros(0, 0, dtype=torch.bool))
        rows, cols = kept.shape
        parts = {
            "blocks": values.reshape(rows, block, cols, block).transpose(1, 2)[kept].contiguous(),
            "columns": kept.nonzero()[:, 1].to(torch.int32),
            "ptr": pointers(kept.sum(dim=1)).to(torch.int32),
        }
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts, {"block": block})

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        block, ptr = int(packed.meta["block"]), packed.parts["ptr"].long()
        rows, cols = packed.shape[0] // block, packed.shape[1] // block
        kept = torch.zeros(rows, cols, dtype=torch.bool)
        kept[torch.repeat_interleave(torch.arange(rows), ptr.diff()), packed.parts["columns"].long()] = True
        tiles = packed.parts["blocks"].new_zeros(rows, cols, block, block)
        tiles[kept] = packed.parts["blocks"]
        mask = kept.repeat_interleave(block, dim=0).repeat_interleave(block, dim=1)
        return tiles.transpose(1, 2).reshape(packed.shape), Support.from_mask(mask)

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        block, kept = _grid(support) or (SIZES[-1], torch.zeros(0, 0, dtype=torch.bool))
        return int(kept.sum()) * (block * block * dtype.itemsize + 4) + (kept.shape[0] + 1) * 4


def _grid(support: Support) -> tuple[int, Bool[Tensor, "rows cols"]] | None:
    """The largest block size that the support is made of, and which blocks it keeps."""
    block, kept = SIZES[-1], _merged(support.mask(), SIZES[-1])
    if kept is None:
        return None
    while block < SIZES[0] and (larger := _merged(kept, 2)) is not None:
        block, kept = 2 * block, larger
    return block, kept


def _merged(cells: Bool[Tensor, "height width"], size: int) -> Bool[Tensor, "rows cols"] | None:
    """One cell for every `size` x `size` of them, or None where they do not all agree."""
    height, width = cells.shape
    if height % size or width % size:
        return None
    tiles = cells.reshape(height // size, size, width // size, size)
    some, every = tiles.any(dim=3).any(dim=1), tiles.all(dim=3).all(dim=1)
    return some if torch.equal(some, every) else None


FORMATS.register(Bsr.registered_name)(Bsr())
