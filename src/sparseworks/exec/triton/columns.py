"""y = x W^T + b for at most eight rows of activations with many zeros: weights of inputs that are zero in every row are not read.

Shapes: x (rows <= 8, in), `weight_t` (in, out) input-major, so that the weights of one input are one run of memory; y (rows, out).
An input is active where |x| > threshold in any row; below it an entry counts as zero. This is the product of contextual sparsity (Deja Vu,
Liu et al. 2023, arXiv 2310.17157; TEAL, Liu et al. 2024, arXiv 2408.14690).

A program has a tile of outputs and a part of the inputs. It first lists the active inputs of its part (a prefix sum; the list goes through
memory, which only this program reads), then takes the listed runs of weights, `BK` at a time. Loading under a mask without a list costs
instructions for every weight (14336 inputs, a tenth of them active, 4096 outputs: 23 microseconds on an H200 instead of 14); a list by a kernel of its own
costs a launch (30).
One row is multiplied where the weights arrive, in registers; more rows are padded to 16 for tensor cores. Parts are
added up by a second kernel in a fixed order, not by atomics: the same input gives the same bits.
"""

# pyright: reportArgumentType=false
# Triton's own annotations say that a reduction may return a tuple.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.exec.triton.launch import floats, run, splits, together
from sparseworks.exec.triton.product import multiply

MOST_ROWS = 8
_ROWS = 16  # the least that a tensor-core product takes
_MOST_PARTS = 64  # that are added up at once
_LEAST = 128  # inputs of a part


@triton.jit
def _gather(x, w, lists, parts, rows, width, out, span, threshold, ROWS: tl.constexpr, SPAN: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    n, split = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1)
    m, place = tl.arange(0, ROWS), tl.arange(0, SPAN)
    k = split * span + place
    mine = (m < rows)[:, None] & ((place < span) & (k < width))[None, :]
    size = tl.abs(tl.load(x + m[:, None] * width + k[None, :], mask=mine, other=0.0).to(tl.float32))
    active = tl.max((mine & ~(size <= threshold)).to(tl.int32), axis=0)  # `not <=` keeps NaN: it must reach the result
    found = tl.sum(active, axis=0)
    listed = lists + (split * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * SPAN
    tl.store(listed + tl.cumsum(active, axis=0) - active, k, mask=active != 0)
    tl.debug_barrier()
    total = tl.zeros([BK if ROWS == 1 else ROWS, BN], dtype=tl.float32)
    for start in range(0, found, BK):
        i = start + tl.arange(0, BK)
        c = tl.load(listed + i, mask=i < found, other=0)
        from_w = w + c.to(tl.int64)[:, None] * out + n[None, :]
        b = tl.load(from_w, mask=(i < found)[:, None] & (n < out)[None, :], other=0.0)
        if ROWS == 1:
            a = tl.load(x + c, mask=i < found, other=0.0).to(tl.float32)
            total += a[:, None] * b.to(tl.float32)
        else:
            a = tl.load(x + m[:, None] * width + c[None, :], mask=(m < rows)[:, None] & (i < found)[None, :], other=0.0)
            total = multiply(tl.where(tl.abs(a.to(tl.float32)) <= threshold, 0.0, a).to(b.dtype), b, total)
    if ROWS == 1:
        tl.store(parts + split * out + n, tl.sum(total, axis=0), mask=n < out)
    else:
        where = parts + (split * rows + m)[:, None] * out + n[None, :]
        tl.store(where, total, mask=(m < rows)[:, None] & (n < out)[None, :])


@triton.jit
def _add(parts, bias, y, size, out, count, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr):
    i, split = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, PARTS)
    mask = (split < count)[:, None] & (i < size)[None, :]
    total = tl.sum(tl.load(parts + split[:, None] * size + i[None, :], mask=mask, other=0.0), axis=0)
    if HAS_BIAS:
        total += tl.load(bias + i % out, mask=i < size, other=0.0).to(tl.float32)
    tl.store(y + i, total.to(y.dtype.element_ty), mask=i < size)


def column_linear(
    x: Float[Tensor, "rows in"],
    weight_t: Float[Tensor, "in out"],
    bias: Float[Tensor, " out"] | None = None,
    threshold: float = 0.0,
) -> Float[Tensor, "rows out"]:
    """x W^T + b over the inputs that are active in any row, entries with |x| <= threshold taken as zero; accumulated in float32.

    Raises:
        ShapeError: more than eight rows, or a weight that does not fit.
        DtypeError: x and weight of different or other types.
        KernelError: tensors that are not contiguous on one GPU.
    """
    what = "The column-skipping product"
    device = together(what, x, weight_t, bias)
    floats(what, x, weight_t)
    (rows, width), out = x.shape, weight_t.shape[1]
    if weight_t.shape[0] != width:
        raise ShapeError(f"{what} takes a weight ({width}, out), input-major, got {tuple(weight_t.shape)}.")
    if rows > MOST_ROWS:
        raise ShapeError(
            f"{what} takes at most {MOST_ROWS} rows, got {rows}: with more, hardly any input is zero in all."
        )
    options = _tiles(rows)
    tiles = triton.cdiv(out, options["BN"])
    parts_n = splits(device, tiles, min(_MOST_PARTS, triton.cdiv(width, _LEAST)), 16 if rows == 1 else 8)
    span = max(triton.cdiv(triton.cdiv(width, max(parts_n, 1)), 16) * 16, 16)
    parts_n = triton.cdiv(width, span)
    options["SPAN"] = triton.next_power_of_2(span)
    parts = torch.empty((parts_n, rows, out), dtype=torch.float32, device=device)
    lists = torch.empty((parts_n, tiles, options["SPAN"]), dtype=torch.int32, device=device)
    y = torch.empty((rows, out), dtype=x.dtype, device=device)
    run(_gather, (tiles, parts_n), x, weight_t, lists, parts, rows, width, out, span, float(threshold), **options)
    size, given = rows * out, bias is not None
    added = {"HAS_BIAS": given, "PARTS": triton.next_power_of_2(parts_n), "TILE": 64, "num_warps": 4}
    run(_add, (triton.cdiv(size, 64),), parts, bias if given else y, y, size, out, parts_n, **added)
    return y


def _tiles(rows: int) -> dict[str, int]:
    """Tile of weights: one row accumulates it in registers of one warp, more rows pass it through shared memory."""
    if rows == 1:
        return {"ROWS": 1, "BN": 64, "BK": 32, "num_warps": 1}
    return {"ROWS": _ROWS, "BN": 128, "BK": 32, "num_warps": 2, "num_stages": 3}
