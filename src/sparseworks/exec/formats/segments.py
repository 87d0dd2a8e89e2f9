"""Padded segments: what the index formats share. A segment is a run of entries with ascending columns (a row, or a row's part).

Segments are padded to a multiple of some lane count by repeating their last column with value zero. Columns of a segment
are strictly ascending, so an entry is padding exactly if it repeats its predecessor: no count needs to be stored, and
the padding reads an input that the segment reads anyway.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.format import Format, Packed
from sparseworks.exec.int8 import from_int8, to_int8


def masked(
    format: Format, weight: Shaped[Tensor, "out in"], support: Support, dtype: torch.dtype
) -> Shaped[Tensor, "out in"]:
    """`weight` on the CPU in `dtype`, after the checks that every `pack` makes.

    Raises:
        ShapeError: weight and support differ in shape.
        KernelError: the format refuses the support.
    """
    if tuple(weight.shape) != tuple(support.shape):
        raise ShapeError(f"The weight is {tuple(weight.shape)}, its support {tuple(support.shape)}; they must agree.")
    refusal = format.refuses(support, dtype)
    if refusal:
        raise KernelError(f"Format {format.registered_name!r} refuses this support: {refusal}.")
    return weight.detach().cpu().to(dtype if dtype.is_floating_point else torch.float32)


VALUE_TYPES = (torch.float32, torch.bfloat16, torch.int8)
"""Stored values of the formats that `stored` and `widened` serve."""


def stored(
    format: Format, weight: Shaped[Tensor, "out in"], support: Support, dtype: torch.dtype
) -> tuple[Shaped[Tensor, "out in"], dict[str, Tensor]]:
    """The matrix in `dtype`, zero outside the support, and the part `scale` (out) that int8 values need.

    Raises:
        ShapeError, KernelError: see `masked`; also where int8 cannot store a kept weight.
    """
    values = masked(format, weight, support, dtype)
    values = values.where(support.mask(), values.new_zeros(()))
    if dtype is not torch.int8:
        return values, {}
    whole, scale = to_int8(values)
    return whole, {"scale": scale}


def widened(values: Shaped[Tensor, "out in"], packed: Packed) -> Shaped[Tensor, "out in"]:
    """Stored values as weights: inverse of `stored` up to rounding."""
    return from_int8(values, packed.parts["scale"]) if packed.dtype is torch.int8 else values


def scale_bytes(support: Support, dtype: torch.dtype) -> int:
    """Bytes of the part `scale`."""
    return 4 * support.shape[0] if dtype is torch.int8 else 0


def pointers(counts: Int[Tensor, " segments"]) -> Int[Tensor, " segments+1"]:
    """Exclusive running sum with the total at the end."""
    ptr = counts.new_zeros(counts.numel() + 1)
    torch.cumsum(counts, dim=0, out=ptr[1:])
    return ptr


def rounded(counts: Int[Tensor, "*segments"], multiple: int) -> Int[Tensor, "*segments"]:
    """Counts rounded up to a multiple."""
    return (counts + multiple - 1) // multiple * multiple


def padding(
    counts: Int[Tensor, " segments"], multiple: int
) -> tuple[Int[Tensor, " segments+1"], Int[Tensor, " slots"], Bool[Tensor, " slots"]]:
    """Where each slot of the padded segments takes its entry from: `(ptr, source, real)`.

    `source` repeats the last entry of a segment in its padding; `real` is False there.
    """
    ptr, start = pointers(rounded(counts, multiple)), pointers(counts)
    segment = torch.repeat_interleave(torch.arange(counts.numel()), ptr.diff())
    offset = torch.arange(int(ptr[-1])) - ptr[segment]
    real = offset < counts[segment]
    return ptr, start[segment] + torch.minimum(offset, counts[segment] - 1), real


def real_entries(ptr: Int[Tensor, " segments+1"], columns: Int[Tensor, " slots"]) -> Bool[Tensor, " slots"]:
    """Which slots are entries, not padding: those that do not repeat their predecessor in the segment."""
    real = torch.ones_like(columns, dtype=torch.bool)
    if columns.numel():
        real[1:] = columns[1:] != columns[:-1]
        real[ptr[:-1][ptr.diff() > 0]] = True
    return real


def segment_of(ptr: Int[Tensor, " segments+1"]) -> Int[Tensor, " slots"]:
    """The segment that each slot lies in."""
    return torch.repeat_interleave(torch.arange(ptr.numel() - 1), ptr.long().diff())


def scatter(
    shape: tuple[int, int], rows: Int[Tensor, " n"], columns: Int[Tensor, " n"], values: Shaped[Tensor, " n"]
) -> tuple[Shaped[Tensor, "out in"], Support]:
    """The dense matrix and the support of entries given by row, column and value."""
    weight = values.new_zeros(shape)
    mask = torch.zeros(shape, dtype=torch.bool)
    weight[rows, columns] = values
    mask[rows, columns] = True
    return weight, Support.from_mask(mask)


def to_u16(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Numbers below 65536 as 16-bit patterns (torch knows few operations on its unsigned type)."""
    return torch.where(x > 0x7FFF, x - 0x10000, x).to(torch.int16)


def from_u16(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Inverse of `to_u16`, as int64."""
    return x.long() & 0xFFFF


WIDEST = 1 << 16
"""Inputs that a 16-bit column index reaches."""


def too_wide(support: Support) -> str | None:
    """The refusal of formats with 16-bit column indices, or None."""
    if support.shape[1] > WIDEST:
        return f"its 16-bit columns reach {WIDEST} inputs, not {support.shape[1]}"
    return None


_INT32 = (1 << 31) - 1


def too_many(entries: int) -> str | None:
    """The refusal of formats with 32-bit pointers, or None."""
    return f"its 32-bit pointers reach {_INT32} entries, not {entries}" if entries > _INT32 else None
