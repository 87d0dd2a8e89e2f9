"""`panel`: 16, 8 or 4 adjacent outputs share their columns (blocks, N:M shared by rows, whole columns)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.formats.segments import (
    VALUE_TYPES,
    from_u16,
    pointers,
    scale_bytes,
    scatter,
    segment_of,
    stored,
    to_u16,
    too_many,
    too_wide,
    widened,
)

_HEIGHTS = (16, 8, 4)
_K_BLOCK = 1024


class Panel(Format):
    """Parts: `columns` (entries) as 16-bit patterns, `values` (entries, height), `ptr` (K-blocks * panels + 1); int8: `scale` (out).

    Entries are ordered by K-block of 1024 inputs, panel, column. Rows that fill up the last panel are zero.
    Meta: `height` (the largest of 16, 8, 4 that the support allows), `k_block`.
    """

    registered_name = "panel"
    dtypes = VALUE_TYPES

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        refusal = super().refuses(support, dtype) or too_wide(support)
        if refusal is None and _height(support.mask()) is None:
            return "adjacent outputs do not share their columns in panels of 16, 8 or 4"
        return refusal or too_many(support.count)

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        (values, scale), mask = stored(self, weight, support, dtype), support.mask()
        height = _height(mask) or _HEIGHTS[-1]
        shared = mask[::height]
        panel, column = shared.nonzero(as_tuple=True)
        segment = column // _K_BLOCK * shared.shape[0] + panel
        order = segment.argsort(stable=True)
        counts = torch.bincount(segment, minlength=_k_blocks(support.shape[1]) * shared.shape[0])
        padded = torch.nn.functional.pad(values, (0, 0, 0, -values.shape[0] % height))
        tall = padded.reshape(shared.shape[0], height, -1).permute(0, 2, 1)
        parts = {
            "columns": to_u16(column[order]),
            "values": tall[panel[order], column[order]].contiguous(),
            "ptr": pointers(counts).to(torch.int32),
            **scale,
        }
        meta = {"height": height, "k_block": _K_BLOCK}
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts, meta)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        height = packed.parts["values"].shape[1]  # not the meta data's: a wrong number would be as many rows
        panels = -(-packed.shape[0] // height)
        panel = segment_of(packed.parts["ptr"]) % max(panels, 1)
        columns = from_u16(packed.parts["columns"])[:, None].expand(-1, height)
        rows = panel[:, None] * height + torch.arange(height)
        inside = rows < packed.shape[0]
        weight, support = scatter(packed.shape, rows[inside], columns[inside], packed.parts["values"][inside])
        return widened(weight, packed), support

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        mask = support.mask()
        shared = mask[:: _height(mask) or 1]
        height = _height(mask) or 1
        entries = int(shared.sum())
        return (
            entries * (2 + height * dtype.itemsize)
            + (_k_blocks(mask.shape[1]) * shared.shape[0] + 1) * 4
            + scale_bytes(support, dtype)
        )


def _k_blocks(width: int) -> int:
    return -(-width // _K_BLOCK)


def _height(mask: Bool[Tensor, "out in"]) -> int | None:
    """The largest panel height whose rows all share their columns; the last panel may be cut off."""
    for height in _HEIGHTS:
        if height > max(mask.shape[0], _HEIGHTS[-1]):
            continue
        first = mask[::height].repeat_interleave(height, dim=0)[: mask.shape[0]]
        if torch.equal(first, mask):
            return height
    return None


FORMATS.register(Panel.registered_name)(Panel())
