"""`balanced`: every row keeps equally many entries in a segment of 256 columns (pattern `26:256`), so a column takes one byte."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed, damaged
from sparseworks.exec.formats.segments import (
    VALUE_TYPES,
    padding,
    pointers,
    real_entries,
    rounded,
    scale_bytes,
    scatter,
    segment_of,
    stored,
    too_many,
    widened,
)

SEGMENT = 256
_LANES = 4


class Balanced(Format):
    """Parts: `columns` (out, slots) within their segment, `values` (out, slots), `starts` (segments + 1); int8: `scale` (out).

    `starts` are the slots in a row at which segments begin, the same in every row; counts differ between segments at most.
    Segments are padded to four as in `segments`.
    """

    registered_name = "balanced"
    dtypes = VALUE_TYPES

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        refusal = super().refuses(support, dtype)
        if refusal is None and _counts(support.mask()) is None:
            return f"its rows keep different counts in a segment of {SEGMENT} columns (pattern N:{SEGMENT} keeps equal ones)"
        return refusal or too_many(support.count + _LANES * support.shape[0] * _segments(support.shape[1]))

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        (values, scale), mask = stored(self, weight, support, dtype), support.mask()
        out, width = mask.shape
        counts = _counts(mask)
        assert counts is not None  # refused above
        _, source, real = padding(counts.repeat(out), _LANES)
        columns = mask.nonzero()[:, 1][source] % SEGMENT
        starts = pointers(rounded(counts, _LANES))
        kept = values[mask][source]
        parts = {
            "columns": columns.to(torch.uint8).reshape(out, int(starts[-1])),
            "values": kept.where(real, kept.new_zeros(())).reshape(out, int(starts[-1])),
            "starts": starts.to(torch.int32),
            **scale,
        }
        return Packed(self.registered_name, (out, width), dtype, parts)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        (out, width), starts = packed.shape, packed.parts["starts"].long()
        rises = starts.shape == (_segments(width) + 1,) and int(starts[0]) == 0 and not bool((starts.diff() < 0).any())
        if (
            not rises or int(starts[-1]) * out != packed.parts["columns"].numel()
        ):  # before as many entries are made of it
            raise damaged(packed, "'starts' should rise from 0 to the entries of a row")
        ptr = pointers(starts.diff().repeat(out))
        segment = segment_of(ptr)
        local, values = packed.parts["columns"].flatten().long(), packed.parts["values"].flatten()
        real = real_entries(ptr, local)
        each = max(_segments(width), 1)
        columns = segment % each * SEGMENT + local
        weight, support = scatter((out, width), (segment // each)[real], columns[real], values[real])
        return widened(weight, packed), support

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        counts = _counts(support.mask())
        slots = 0 if counts is None else int(rounded(counts, _LANES).sum()) * support.shape[0]
        return slots * (1 + dtype.itemsize) + (_segments(support.shape[1]) + 1) * 4 + scale_bytes(support, dtype)


def _segments(width: int) -> int:
    return -(-width // SEGMENT)


def _counts(mask: Bool[Tensor, "out in"]) -> Int[Tensor, " segments"] | None:
    """Entries that every row keeps in each segment, or None if rows differ."""
    segments = _segments(mask.shape[1])
    padded = torch.nn.functional.pad(mask, (0, segments * SEGMENT - mask.shape[1]))
    counts = padded.reshape(mask.shape[0], segments, SEGMENT).sum(dim=2)
    if not mask.shape[0]:
        return counts.new_zeros(segments)
    return counts[0] if bool((counts == counts[0]).all()) else None


FORMATS.register(Balanced.registered_name)(Balanced())
