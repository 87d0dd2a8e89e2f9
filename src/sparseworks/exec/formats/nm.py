"""`nm`: every group of 2, 4 or 8 consecutive inputs keeps the same number; one bit per entry and values at a fixed stride."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.formats.bitmask import OVERREAD, pack_rows, unpack_rows
from sparseworks.exec.formats.segments import masked

_GROUPS = (2, 4, 8)


class NM(Format):
    """Parts: `bits` (out, ceil(in / 8)), `values`: out * in * n / m, and 16 zeros a kernel may read past the end.

    Meta: `n`, `m`. A bit per entry is as small as the usual position codes (2:4: two codes of 2 bits in 4 entries).
    """

    registered_name = "nm"

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        refusal = super().refuses(support, dtype)
        if refusal is None and _ratio(support) is None:
            return "its groups of 2, 4 or 8 consecutive inputs do not all keep the same number"
        return refusal

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        values, mask = masked(self, weight, support, dtype), support.mask()
        n, m = _ratio(support) or (0, 2)
        parts = {"bits": pack_rows(mask, 8), "values": torch.cat([values[mask], values.new_zeros(OVERREAD)])}
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts, {"n": n, "m": m})

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        mask = unpack_rows(packed.parts["bits"], packed.shape[1])
        values = packed.parts["values"]
        weight = values.new_zeros(packed.shape)
        weight[mask] = values[: values.numel() - OVERREAD]
        return weight, Support.from_mask(mask)

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        return support.shape[0] * -(-support.shape[1] // 8) + (support.count + OVERREAD) * dtype.itemsize


def _ratio(support: Support) -> tuple[int, int] | None:
    """The smallest n:m with 0 < n < m that every group of m consecutive inputs keeps exactly."""
    mask = support.mask()
    for m in _GROUPS:
        if mask.numel() and mask.shape[1] % m == 0:
            counts = mask.reshape(-1, m).sum(dim=1)
            if int(counts.min()) == int(counts.max()) and 0 < int(counts[0]) < m:
                return int(counts[0]), m
    return None


FORMATS.register(NM.registered_name)(NM())
