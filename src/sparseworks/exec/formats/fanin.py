"""`fanin`: every output keeps the same number of inputs, so rows need no pointers (ELL); 16-bit columns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed, damaged
from sparseworks.exec.formats.segments import from_u16, masked, padding, scatter, to_u16, too_many, too_wide

_LANES = 8


class FanIn(Format):
    """Parts: `columns` (out, slots) as 16-bit patterns, `values` (out, slots); slots = fan-in rounded up to 8.

    Meta: `fan_in`, the number of entries of a row; the slots behind them are padding.
    """

    registered_name = "fanin"

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        refusal = super().refuses(support, dtype) or too_wide(support)
        if refusal:
            return refusal
        counts = support.indices()[0].diff()
        if counts.numel() and int(counts.min()) != int(counts.max()):
            return f"its rows keep from {int(counts.min())} to {int(counts.max())} inputs, not all the same number"
        return too_many(support.count + _LANES * support.shape[0])

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        values, mask = masked(self, weight, support, dtype), support.mask()
        starts, columns = support.indices()
        _, source, real = padding(starts.diff(), _LANES)
        out = support.shape[0]
        kept = values[mask][source].where(real, torch.zeros((), dtype=dtype))
        slots = source.numel() // max(out, 1)
        parts = {"columns": to_u16(columns[source]).reshape(out, slots), "values": kept.reshape(out, slots)}
        meta = {"fan_in": support.count // max(out, 1)}
        return Packed(self.registered_name, (out, support.shape[1]), dtype, parts, meta)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        fan_in = packed.meta["fan_in"]
        if not 0 <= fan_in <= packed.parts["columns"].shape[1]:
            raise damaged(packed, f"'fan_in' is {fan_in}, with {packed.parts['columns'].shape[1]} slots a row")
        columns = from_u16(packed.parts["columns"][:, :fan_in])
        rows = torch.arange(packed.shape[0])[:, None].expand_as(columns)
        values = packed.parts["values"][:, :fan_in]
        return scatter(packed.shape, rows.flatten(), columns.flatten(), values.flatten())

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        fan_in = support.count // max(support.shape[0], 1)
        return support.shape[0] * -(-fan_in // _LANES) * _LANES * (2 + dtype.itemsize)


FORMATS.register(FanIn.registered_name)(FanIn())
