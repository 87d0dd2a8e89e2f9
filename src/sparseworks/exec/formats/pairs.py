"""`pairs`: kept weights that come as pairs of adjacent inputs (pattern `block:1x2`), in 16-bit fixed point with a scale per row."""

from __future__ import annotations

from math import isqrt
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import KernelError
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.formats.grid import K_BLOCK, Grid, block_sizes, cells_of, refused, segments_of, slots
from sparseworks.exec.formats.segments import masked, scatter

_MOST_INT16 = (1 << 15) - 1
_MOST_INT32 = (1 << 31) - 1


class Pairs(Format):
    """Parts: `columns`, `values` (slots, 2), `ptr`, `rows`: pairs cut and ordered as `grid` says, and `scale` (out).

    w = value * scale[row], with whole numbers |value| <= levels. Meta: `k_block` (in pairs), `row_block`, `limit`: the largest
    whole number to which an input may be rounded so that sum_i |value_i| * limit of every row fits 32 bits. Weights and inputs
    share these bits evenly: 15 bits for short rows, 11 for a row of 5000 kept weights.
    """

    registered_name = "pairs"
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.int16,)

    def refuses(self, support: Support, dtype: torch.dtype = torch.int16) -> str | None:
        """See `Format.refuses`."""
        refusal = super().refuses(support, dtype)
        if refusal is None and _pairs_of(support) is None:
            return "its kept weights do not come in pairs of adjacent inputs (pattern block:1x2 makes such)"
        return refusal or refused(support, support.shape[1] // 2)

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.int16) -> Packed:
        """See `Format.pack`; values are rounded to the nearest level.

        Raises:
            KernelError: also where a kept weight is not finite.
        """
        out, width = support.shape
        kept = torch.where(support.mask(), masked(self, weight, support, dtype), 0.0)
        if not bool(torch.isfinite(kept).all()):
            raise KernelError(
                "The kept weights hold NaN or infinities, which 16-bit fixed point cannot store; mend them first."
            )
        values, scale, limit = fixed_point(kept)
        pairs = support.mask()[:, ::2]
        cells = segments_of(pairs)
        held = values.reshape(out, width // 2, 2)[pairs][cells.picked]
        parts = {**cells.parts, "values": (held * cells.real[:, None]).to(torch.int16), "scale": scale}
        meta = {"k_block": K_BLOCK, "row_block": cells.row_block, "limit": limit}
        return Packed(self.registered_name, (out, width), dtype, parts, meta)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`; in float32."""
        (out, width), parts = packed.shape, packed.parts
        grid = Grid(out, width // 2, *block_sizes(packed))
        real, rows, pair = cells_of(grid, parts["ptr"], parts["columns"], parts["rows"])
        values = parts["values"][real].float() * parts["scale"][rows, None]
        columns = torch.stack([2 * pair, 2 * pair + 1], dim=1)
        return scatter(packed.shape, rows[:, None].expand_as(columns).flatten(), columns.flatten(), values.flatten())

    def nbytes(self, support: Support, dtype: torch.dtype = torch.int16) -> int:
        """See `Format.nbytes`."""
        held, segments = slots(support.mask()[:, ::2])
        return held * 5 + (segments + 1) * 4 + segments + 4 * support.shape[0]

    def rounded(self, weight: Float[Tensor, "out in"], dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """See `Format.rounded`."""
        values, scale, _ = fixed_point(weight.float())
        return values.float() * scale[:, None]


def fixed_point(weight: Float[Tensor, "out in"]) -> tuple[Int[Tensor, "out in"], Float[Tensor, " out"], int]:
    """Whole numbers, a scale per row with weight ~ number * scale, and the largest whole number an input may be rounded to.

    levels = min(2^15 - 1, sqrt((2^31 - 1) / max_row(sum |w| / max |w|))): numbers and inputs get equally many bits.
    """
    most = weight.abs().amax(dim=1) if weight.numel() else weight.new_zeros(weight.shape[0])
    ratio = (weight.abs().sum(dim=1) / most).nan_to_num(0.0)
    levels = min(_MOST_INT16, isqrt(int(_MOST_INT32 / max(float(ratio.max()) if ratio.numel() else 0.0, 1.0))))
    scale = most / levels
    values = torch.where(scale[:, None] > 0, weight / scale[:, None], 0.0).round().clamp(-levels, levels).long()
    longest = int(values.abs().sum(dim=1).max()) if values.numel() else 0
    return values, scale, min(_MOST_INT16, _MOST_INT32 // max(longest, 1))


def _pairs_of(support: Support) -> torch.Tensor | None:
    """(out, in / 2): which pairs are kept, or None if a pair is kept by half or the inputs are odd in number."""
    mask = support.mask()
    if mask.shape[1] % 2:
        return None
    first, second = mask[:, ::2], mask[:, 1::2]
    return first if torch.equal(first, second) else None


FORMATS.register(Pairs.registered_name)(Pairs())
