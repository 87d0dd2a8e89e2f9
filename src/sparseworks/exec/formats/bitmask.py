"""`bitmask`: one bit per entry and the kept values in row order; the most compact form between 25 and 95 % density."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.formats.segments import VALUE_TYPES, pointers, rounded, scale_bytes, stored, too_many, widened

_WORD = 32
OVERREAD = 16
"""Zeros after the last value: the lanes of the widest vector."""


class Bitmask(Format):
    """Parts: `bits` (out, bytes), rows padded to 32 columns; `values`, 16 zeros at the end; `ptr` (out + 1), first value of a row; int8: `scale` (out).

    The zeros at the end let a kernel load eight values where fewer are left.
    """

    registered_name = "bitmask"
    dtypes = (*VALUE_TYPES, torch.float16)

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        return super().refuses(support, dtype) or too_many(support.count)

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        (values, scale), mask = stored(self, weight, support, dtype), support.mask()
        parts = {
            "bits": pack_rows(mask, _WORD),
            "values": torch.cat([values[mask], values.new_zeros(OVERREAD)]),
            "ptr": pointers(mask.sum(dim=1)).to(torch.int32),
            **scale,
        }
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        mask = unpack_rows(packed.parts["bits"], packed.shape[1])
        values = packed.parts["values"]
        weight = values.new_zeros(packed.shape)
        weight[mask] = values[: values.numel() - OVERREAD]
        return widened(weight, packed), Support.from_mask(mask)

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        out, width = support.shape
        bits = out * int(rounded(torch.tensor(width), _WORD)) // 8
        return bits + (support.count + OVERREAD) * dtype.itemsize + (out + 1) * 4 + scale_bytes(support, dtype)


def pack_rows(mask: Bool[Tensor, "out in"], multiple: int) -> UInt8[Tensor, "out bytes"]:
    """One bit per entry, little-endian, each row padded with zeros to a multiple of columns."""
    pad = -mask.shape[1] % multiple
    bits = np.packbits(torch.nn.functional.pad(mask, (0, pad)).numpy(), axis=1, bitorder="little")
    return torch.from_numpy(bits)


def unpack_rows(bits: UInt8[Tensor, "out bytes"], width: int) -> Bool[Tensor, "out in"]:
    """Inverse of `pack_rows` for rows of `width` entries."""
    flat = np.unpackbits(bits.cpu().numpy(), axis=1, bitorder="little").view(np.bool_)
    return torch.from_numpy(flat[:, :width].copy())


FORMATS.register(Bitmask.registered_name)(Bitmask())
