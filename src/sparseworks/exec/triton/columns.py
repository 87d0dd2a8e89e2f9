"""y = x W^T + b for at most eight rows of activations with many zeros: weights of inputs that are zero in every row are not read.

Shapes: x (rows <= 8, in), `weight_t` (in, out) input-major, so that the weights of one input are one run of memory; y (rows, out).
An input is active where |x| > threshold in any row; below it an entry counts as zero. This is the product of contextual sparsity (Deja Vu,
Liu et al. 2023, arXiv 2310.17157; TEAL, Liu et al. 2024, arXiv 2408.14690).

First one program lists the active inputs in ascending order (a prefix sum over tiles of 1024), and leaves their number on the device:
nothing waits for the host, so the calls can be captured in a CUDA graph. Then a grid of output tiles x splits of the list multiplies: each program gathers
`BK` listed runs of `BN` weights (64 to 256 bytes, whole sectors) and multiplies them in tensor cores with the listed activations,
padded to 16 rows, which costs nothing beside the loads. A mask over all inputs without a list would issue the loads of inactive inputs, too, and
leave programs unequal work; a split of the list is equal work by construction. Splits are added up by a third kernel in a fixed
order, not by atomics: the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.exec.triton.launch import floats, run, splits, together
from sparseworks.exec.triton.product import multiply

MOST_ROWS = 8
_ROWS = 16  # the least that a tensor-core product takes


@triton.jit
def _list(x, active, count, rows, width, threshold, ROWS: tl.constexpr, BK: tl.constexpr):
    m = tl.arange(0, ROWS)
    found = tl.zeros([1], dtype=tl.int32)
    for start in range(0, width, BK):
        k = start + tl.arange(0, BK)
        live = (m < rows)[:, None] & (k < width)[None, :]
        size = tl.abs(tl.load(x + m[:, None] * width + k[None, :], mask=live, other=0.0).to(tl.float32))
        # `not <=` keeps NaN: it must reach the result.
        on = tl.max(tl.where(live & ~(size <= threshold), 1, 0), axis=0)
        tl.store(active + found + tl.cumsum(on, axis=0) - on, k, mask=on != 0)
        found += tl.sum(on, axis=0)
    tl.store(count + tl.arange(0, 1), found)


@triton.jit
def _gather(x, w, active, count, parts, rows, width, out, threshold, ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    n, split = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1)
    m = tl.arange(0, ROWS)
    found = tl.load(count)
    span = tl.cdiv(found, tl.num_programs(1))
    last = tl.minimum((split + 1) * span, found)
    total = tl.zeros([ROWS, BN], dtype=tl.float32)
    for start in range(split * span, last, BK):
        i = start + tl.arange(0, BK)
        k = tl.load(active + i, mask=i < last, other=0)
        a = tl.load(x + m[:, None] * width + k[None, :], mask=(m < rows)[:, None] & (i < last)[None, :], other=0.0)
        a = tl.where(tl.abs(a.to(tl.float32)) <= threshold, 0.0, a)
        b = tl.load(
            w + k.to(tl.int64)[:, None] * out + n[None, :], mask=(i < last)[:, None] & (n < out)[None, :], other=0.0
        )
        total = multiply(a.to(x.dtype.element_ty), b, total)
    where = parts + (split * rows + m)[:, None] * out + n[None, :]
    tl.store(where, total, mask=(m < rows)[:, None] & (n < out)[None, :])


@triton.jit
def _add(parts, bias, y, size, out, count, HAS_BIAS: tl.constexpr, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], dtype=tl.float32)
    for split in range(count):
        total += tl.load(parts + split * size + i, mask=i < size, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + i % out, mask=i < size, other=0.0).to(tl.float32)
    tl.store(y + i, total.to(y.dtype.element_ty), mask=i < size)


def active_inputs(x: Float[Tensor, "rows in"], threshold: float = 0.0) -> tuple[Int[Tensor, " in"], Int[Tensor, " 1"]]:
    """Inputs with |x| > threshold in any row, ascending, and how many they are; what follows them in the list is undefined.

    Raises:
        ShapeError: more than eight rows.
        KernelError: a tensor that is not contiguous on a GPU.
    """
    device = together("The list of active inputs", x)
    rows, width = x.shape
    if rows > MOST_ROWS:
        raise ShapeError(
            f"Inputs are listed for at most {MOST_ROWS} rows, got {rows}: with more, hardly any is zero in all."
        )
    active = torch.empty(max(width, 1), dtype=torch.int32, device=device)
    count = torch.empty(1, dtype=torch.int32, device=device)
    padded = triton.next_power_of_2(max(rows, 1))
    run(_list, (1,), x, active, count, rows, width, float(threshold), ROWS=padded, BK=1024, num_warps=8)
    return active, count


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
    active, count = active_inputs(x, threshold)
    tile = 128 if out >= 8192 else 64
    tiles = triton.cdiv(out, tile)
    parts_n = splits(device, tiles, max(1, width // 256), waves=4)
    parts = torch.empty((parts_n, rows, out), dtype=torch.float32, device=device)
    y = torch.empty((rows, out), dtype=x.dtype, device=device)
    options = {"ROWS": _ROWS, "BN": tile, "BK": 64, "num_warps": 4, "num_stages": 3}
    run(_gather, (tiles, parts_n), x, weight_t, active, count, parts, rows, width, out, float(threshold), **options)
    given, size = bias is not None, rows * out
    grid = (triton.cdiv(size, 256),)
    run(_add, grid, parts, bias if given else y, y, size, out, parts_n, HAS_BIAS=given, TILE=256, num_warps=4)
    return y
