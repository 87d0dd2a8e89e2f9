"""`inmajor`: the whole matrix with the weights of one input side by side, so that inputs that are zero need not be read."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.formats.segments import VALUE_TYPES, scale_bytes, stored, widened


class InputMajor(Format):
    """Parts: `weight` (in, out), zero outside the support; `bits`, one per entry, row-major, little-endian; int8: `scale` (out)."""

    registered_name = "inmajor"
    dtypes = (*VALUE_TYPES, torch.float16)

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        values, scale = stored(self, weight, support, dtype)
        parts = {"weight": values.T.contiguous(), "bits": support.bits().clone(), **scale}
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        weight = widened(packed.parts["weight"].transpose(0, 1).contiguous(), packed)
        return weight, Support.from_bits(packed.parts["bits"], packed.shape)

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        return support.size * dtype.itemsize + (support.size + 7) // 8 + scale_bytes(support, dtype)


FORMATS.register(InputMajor.registered_name)(InputMajor())
