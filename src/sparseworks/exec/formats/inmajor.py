"""`inmajor`: the whole matrix with the outputs of each input together, so that an input that is zero costs nothing to read."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.formats.segments import FLOATS_AND_INT8, masked, quantised, restored, scale_bytes, stored


class InMajor(Format):
    """Parts: `weight` (in, out), zero outside the support; `bits`, one per entry of (out, in); `scale` (out) for int8."""

    registered_name = "inmajor"
    dtypes = FLOATS_AND_INT8

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        values, scale = stored(masked(self, weight, support, dtype), support.mask(), dtype)
        parts = {"weight": values.T.contiguous(), "bits": support.bits().clone(), **scale}
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        weight = restored(packed, packed.parts["weight"].transpose(0, 1).contiguous())
        return weight, Support.from_bits(packed.parts["bits"], packed.shape)

    def rounded(self, weight: Float[Tensor, "out in"], dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """See `Format.rounded`."""
        return quantised(weight, dtype)

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        return support.size * dtype.itemsize + (support.size + 7) // 8 + scale_bytes(support.shape[0], dtype)


FORMATS.register(InMajor.registered_name)(InMajor())
