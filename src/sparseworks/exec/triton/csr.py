"""y = x W^T + b for few rows of x and W as compressed rows with 16-bit columns (the `csr16` form, as it lies in memory).

Shapes: x (rows, in), y (rows, out); `columns` (slots) as 16-bit patterns, `values` (slots), `ptr` (out + 1), all multiples of eight, since
every row is padded to eight entries. Time follows the kept entries, four bytes each in half precision, where a bitmap still visits
every place: below about a quarter kept this is the shorter way.

A program has `TILE` rows of W and takes `STEP` entries a step: a thread reads eight columns and eight values by one 16-byte load each. For one row of
x (two short ones) the program holds all of it and gathers from shared memory; through the L1 cache an H200 took 17.3 microseconds
instead of 14.5 for 14336 x 4096 weights of which 10 % are kept. More rows, and rows too long for shared memory, are gathered from
x transposed, so that one place brings its entries for all rows. The form follows Gale et al. (2020, arXiv 2006.10901): short indices, rows padded to vectors.
"""

# pyright: reportArgumentType=false
# Triton's own annotations say that a reduction may return a tuple.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int16, Int32
from torch import Tensor

from sparseworks.exec.triton.launch import run, together

MOST_ROWS = 8
_SHORT = 8192  # inputs: two rows of more are gathered transposed
_SHARED = 1 << 16  # bytes of x in shared memory; three programs of a multiprocessor


@triton.jit
def _few(x, y, bias, columns, values, ptr, rows, out, width, HAS_BIAS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    row, c = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, WIDTH)
    inside = row < out
    first = tl.multiple_of(tl.load(ptr + row, mask=inside, other=0), 8)
    last = tl.multiple_of(tl.load(ptr + row + 1, mask=inside, other=0), 8)
    longest = tl.max(last - first, axis=0)
    for m in range(rows):  # from the second on, the weights come from the L1 cache
        every = tl.load(x + m * width + c, mask=c < width, other=0.0)
        total = tl.zeros([TILE, STEP], dtype=tl.float32)
        for start in range(0, longest, STEP):
            at = first[:, None] + (start + tl.arange(0, STEP))[None, :]
            live = at < last[:, None]
            column = tl.load(columns + at, mask=live, other=0).to(tl.int32) & 0xFFFF
            w = tl.load(values + at, mask=live, other=0.0).to(tl.float32)
            a = tl.reshape(tl.gather(every, tl.reshape(column, [TILE * STEP]), 0), [TILE, STEP])
            total += tl.where(live, w * a.to(tl.float32), 0.0)
        result = tl.sum(total, axis=1)
        if HAS_BIAS:
            result += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + m * out + row, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _several(x_t, y, bias, columns, values, ptr, rows, out, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    row, m = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, ROWS)
    inside = row < out
    first = tl.multiple_of(tl.load(ptr + row, mask=inside, other=0), 8)
    last = tl.multiple_of(tl.load(ptr + row + 1, mask=inside, other=0), 8)
    longest = tl.max(last - first, axis=0)
    total = tl.zeros([TILE, STEP, ROWS], dtype=tl.float32)
    for start in range(0, longest, STEP):
        at = first[:, None] + (start + tl.arange(0, STEP))[None, :]
        live = at < last[:, None]
        column = tl.load(columns + at, mask=live, other=0).to(tl.int32) & 0xFFFF
        w = tl.load(values + at, mask=live, other=0.0).to(tl.float32)
        a = tl.load(x_t + column[:, :, None] * ROWS + m[None, None, :], mask=live[:, :, None], other=0.0)
        total += w[:, :, None] * a.to(tl.float32)
    result = tl.sum(total, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    where = y + m[None, :] * out + row[:, None]
    tl.store(where, result.to(y.dtype.element_ty), mask=inside[:, None] & (m < rows)[None, :])


def csr_linear(
    x: Float[Tensor, "rows in"],
    columns: Int16[Tensor, " slots"],
    values: Float[Tensor, " slots"],
    ptr: Int32[Tensor, " out+1"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "rows out"]:
    """x W^T + b, accumulated in float32. The buffers are followed as they are: check them first (`CsrKernel.inspect`).

    Raises:
        KernelError: tensors that are not contiguous on one GPU.
    """
    together("The compressed-row product", x, columns, values, ptr, bias)
    (rows, width), out = x.shape, ptr.numel() - 1
    y = torch.empty((rows, out), dtype=x.dtype, device=x.device)
    given = bias is not None
    for first in range(0, rows, MOST_ROWS):
        some, into = x[first : first + MOST_ROWS], y[first : first + MOST_ROWS]
        taken = some.shape[0]
        buffers = (into, bias if given else x, columns, values, ptr)
        if width * x.itemsize <= _SHARED and (taken == 1 or (taken == 2 and width <= _SHORT)):
            options = {**_tiles(width), "HAS_BIAS": given, "WIDTH": triton.next_power_of_2(width)}
            run(_few, (triton.cdiv(out, options["TILE"]),), some, *buffers, taken, out, width, **options)
            continue
        options = {"ROWS": triton.next_power_of_2(taken), "TILE": 2, "STEP": 128 if taken > 2 else 256}
        x_t = x.new_zeros(width, options["ROWS"])
        x_t[:, :taken] = some.T
        grid = (triton.cdiv(out, 2),)
        run(_several, grid, x_t, *buffers, taken, out, HAS_BIAS=given, num_warps=1 if taken > 2 else 2, **options)
    return y


def _tiles(width: int) -> dict[str, int]:
    """Rows of W and entries of a step: more of both where putting x into shared memory costs more."""
    if width <= 8192:
        return {"TILE": 8, "STEP": 256, "num_warps": 4}
    return {"TILE": 16, "STEP": 512, "num_warps": 8}
