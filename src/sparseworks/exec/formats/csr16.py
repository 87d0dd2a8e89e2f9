"""`csr16`: compressed rows with 16-bit columns, each row padded to eight entries; for one to eight rows of input."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.formats.segments import (
    VALUE_TYPES,
    from_u16,
    padding,
    real_entries,
    rounded,
    scale_bytes,
    scatter,
    segment_of,
    stored,
    to_u16,
    too_many,
    too_wide,
    widened,
)

_LANES = 8


class Csr16(Format):
    """Parts: `columns` (16-bit patterns), `values`, `ptr` (out + 1); int8: `scale` (out). Padding as in `segments`."""

    registered_name = "csr16"
    dtypes = (*VALUE_TYPES, torch.float16)

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        return super().refuses(support, dtype) or too_wide(support) or too_many(support.count + 8 * support.shape[0])

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        (values, scale), mask = stored(self, weight, support, dtype), support.mask()
        starts, columns = support.indices()
        ptr, source, real = padding(starts.diff(), _LANES)
        kept = values[mask][source]
        parts = {
            "columns": to_u16(columns[source]),
            "values": kept.where(real, torch.zeros((), dtype=dtype)),
            "ptr": ptr.to(torch.int32),
            **scale,
        }
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        columns, ptr = from_u16(packed.parts["columns"]), packed.parts["ptr"].long()
        real = real_entries(ptr, columns)
        weight, support = scatter(packed.shape, segment_of(ptr)[real], columns[real], packed.parts["values"][real])
        return widened(weight, packed), support

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        slots = int(rounded(support.indices()[0].diff(), _LANES).sum())
        return slots * (2 + dtype.itemsize) + (support.shape[0] + 1) * 4 + scale_bytes(support, dtype)


FORMATS.register(Csr16.registered_name)(Csr16())
