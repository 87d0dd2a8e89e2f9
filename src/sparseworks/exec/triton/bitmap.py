"""y = x W^T + b for few rows of x and W as bits with packed values (the `bitmask` form, as it lies in memory).

Shapes: x (rows, in), y (rows, out); `bits` (out, bytes), one bit an entry; `values`, the kept entries row by row; `ptr` (out + 1), where the
values of a row begin. A row's values lie in one run, so the place of an entry is `ptr[row]` plus the number of bits set before it in the
row: a prefix sum over population counts, carried along while a program walks its rows. The CPU's form is therefore read as it is, without
offsets per tile. Bitmaps for GPUs with popcounts as positions follow SpInfer (Fan et al., EuroSys 2025).

One row (`_one`): a program has `TILE` rows and takes `8 * BYTES` columns a step. A thread owns bytes, not columns: one prefix sum serves
eight columns, and inside the byte the position only counts up. Neighbouring threads then read neighbouring runs of about `8 * density`
values, which share sectors of the L1 cache. Per weight this needs some four integer operations; at 3.35 TB/s and half the weights kept,
an H100 delivers weights at a rate that leaves about five.

More rows (`_few`): a program expands a tile of `TILE` outputs and `BK` columns, position by position, and multiplies it with up to 64 rows
of x in tensor cores. Weights are still read once, so time is theirs until the arithmetic of the expansion shows.
"""

# pyright: reportGeneralTypeIssues=false
# Triton's own annotations do not know that `static_range` is iterated.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sparseworks.exec.triton.launch import multiprocessors, run, together
from sparseworks.exec.triton.product import multiply

MOST_ROWS = 64


@triton.jit
def _bits_set(byte):
    pairs = byte - ((byte >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (fours + (fours >> 4)) & 0x0F


@triton.jit
def _one(x, y, bias, bits, values, ptr, out, width, row_bytes, HAS_BIAS: tl.constexpr, TILE: tl.constexpr, BYTES: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < out
    at = tl.load(ptr + row, mask=inside, other=0)
    line = bits + row.to(tl.int64)[:, None] * row_bytes
    total = tl.zeros([TILE, BYTES], dtype=tl.float32)
    for start in range(0, row_bytes, BYTES):
        b = start + tl.arange(0, BYTES)
        byte = tl.load(line + b[None, :], mask=inside[:, None] & (b < row_bytes)[None, :], other=0).to(tl.int32)
        count = _bits_set(byte)
        place = at[:, None] + tl.cumsum(count, axis=1) - count
        for j in tl.static_range(8):
            bit = (byte >> j) & 1
            column = b * 8 + j
            w = tl.load(values + place, mask=bit != 0, other=0.0).to(tl.float32)
            total += w * tl.load(x + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
            place += bit
        at += tl.sum(count, axis=1)
    result = tl.sum(total, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _few(x, y, bias, bits, values, ptr, rows, out, width, row_bytes, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < out
    at = tl.load(ptr + row, mask=inside, other=0)
    line = bits + row.to(tl.int64)[:, None] * row_bytes
    m = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, TILE], dtype=tl.float32)
    for start in range(0, width, BK):
        column = start + tl.arange(0, BK)
        known = inside[:, None] & (column < width)[None, :]
        byte = tl.load(line + (column // 8)[None, :], mask=known, other=0).to(tl.int32)
        bit = (byte >> (column % 8)[None, :]) & 1
        place = at[:, None] + tl.cumsum(bit, axis=1) - bit
        w = tl.load(values + place, mask=bit != 0, other=0.0).to(x.dtype.element_ty)
        live = (m < rows)[:, None] & (column < width)[None, :]
        a = tl.load(x + m[:, None] * width + column[None, :], mask=live, other=0.0)
        total = multiply(a, tl.trans(w), total)
        at += tl.sum(bit, axis=1)
    if HAS_BIAS:
        total += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[None, :]
    where = y + m[:, None] * out + row[None, :]
    tl.store(where, total.to(y.dtype.element_ty), mask=(m < rows)[:, None] & inside[None, :])


def bitmap_linear(
    x: Float[Tensor, "rows in"],
    bits: UInt8[Tensor, "out bytes"],
    values: Float[Tensor, " slots"],
    ptr: Int[Tensor, " out+1"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "rows out"]:
    """x W^T + b, accumulated in float32. The buffers are followed as they are: check them first (`BitmaskKernel.inspect`).

    More than 64 rows are taken 64 at a time, each time reading the weights again.

    Raises:
        KernelError: tensors that are not contiguous on one GPU.
    """
    together("The bitmap product", x, bits, values, ptr, bias)
    (rows, width), (out, row_bytes) = x.shape, bits.shape
    y = torch.empty((rows, out), dtype=x.dtype, device=x.device)
    for first in range(0, rows, MOST_ROWS):
        _some(x[first : first + MOST_ROWS], y[first : first + MOST_ROWS], bits, values, ptr, bias, width, row_bytes)
    return y


def _some(x, y, bits, values, ptr, bias, width, row_bytes) -> None:
    rows, out = y.shape
    given = bias is not None
    buffers = (x, y, bias if given else x, bits, values, ptr)
    options = _tiles(rows, out, row_bytes, multiprocessors(x.device))
    grid = (triton.cdiv(out, options["TILE"]),)
    if rows == 1:
        run(_one, grid, *buffers, out, width, row_bytes, HAS_BIAS=given, **options)
    else:
        run(_few, grid, *buffers, rows, out, width, row_bytes, HAS_BIAS=given, **options)


def _tiles(rows: int, out: int, row_bytes: int, processors: int) -> dict[str, int]:
    """Rows of W of a program, and bytes (one row of x) or columns (more) of a step."""
    if rows == 1:
        span = min(64, triton.next_power_of_2(max(row_bytes, 16)))
        return {"TILE": 4, "BYTES": span, "num_warps": 4}
    padded = max(16, triton.next_power_of_2(rows))
    if out <= 64 * processors:
        return {"ROWS": padded, "TILE": 16, "BK": 256, "num_warps": 4, "num_stages": 2}
    return {"ROWS": padded, "TILE": 16, "BK": 64, "num_warps": 2, "num_stages": 3}
