"""`inbits`: the kept weights of one input side by side, with one bit per output: neither zeros nor skipped inputs are read."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.formats.bitmask import OVERREAD, pack_rows, unpack_rows
from sparseworks.exec.formats.segments import VALUE_TYPES, pointers, scale_bytes, stored, too_many, widened

_BYTE = 8


class InputBits(Format):
    """Parts: `bits` (in, bytes), one per output; `values` by input, then output, 16 zeros at the end; `ptr` (in + 1), first value of an
    input; int8: `scale` (out). The zeros at the end let a kernel load a vector of values where fewer are left."""

    registered_name = "inbits"
    dtypes = VALUE_TYPES

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        return super().refuses(support, dtype) or too_many(support.count)

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        (values, scale), mask = stored(self, weight, support, dtype), support.mask().T.contiguous()
        parts = {
            "bits": pack_rows(mask, _BYTE),
            "values": torch.cat([values.T[mask], values.new_zeros(OVERREAD)]),
            "ptr": pointers(mask.sum(dim=1)).to(torch.int32),
            **scale,
        }
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        out, width = packed.shape
        mask = unpack_rows(packed.parts["bits"], out)
        values = packed.parts["values"]
        weight = values.new_zeros(width, out)
        weight[mask] = values[: values.numel() - OVERREAD]
        return widened(weight.T.contiguous(), packed), Support.from_mask(mask.T)

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        out, width = support.shape
        bits = width * -(-out // _BYTE)
        return bits + (support.count + OVERREAD) * dtype.itemsize + (width + 1) * 4 + scale_bytes(support, dtype)


FORMATS.register(InputBits.registered_name)(InputBits())
