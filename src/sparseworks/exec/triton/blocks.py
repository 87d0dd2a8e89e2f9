"""y = x W^T with W as kept square blocks (the `bsr` form), and both of its gradients.

Shapes: x (rows, in), y (rows, out); `blocks` (n, B, B), B from 16 to 128, sorted by block row; `ptr` (out / B + 1) and `columns` (n).

    y[:, i] = sum of x[:, columns[p]] blocks[p]^T          over the blocks p of block row i
    dx[:, j] = sum of dy[:, row of p] blocks[p]            over the blocks p of block column j
    dW[p] = dy[:, row of p]^T x[:, columns[p]]             for every kept block (a sampled dense-dense product)

The first two are one kernel, which walks the blocks of a line. A program has `BM` rows of x and one line of blocks. The kept columns of a
line are one long dimension of `kept * B` entries, of which `BK` (64) are gathered at a time: small blocks so fill a tensor-core operand together,
large ones are taken in slices that leave room for three stages in shared memory. Tiles of rows come first in the grid, so that programs
in flight at the same time share the blocks of a line in L2. Walking kept blocks only is the design of Gray et al. (2017, "GPU kernels for
block-sparse weights"), the sampled product that of MegaBlocks (Gale et al. 2022, arXiv 2211.15841).

For dW a program has one block and walks the rows. `block_linear` is differentiable in x, blocks and bias: a layer trains with weights, gradients and
optimizer state of the kept blocks only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.exec.triton.launch import floats, run, together
from sparseworks.exec.triton.product import multiply

SIZES = (16, 32, 64, 128)


@triton.jit
def _walk(x, y, bias, blocks, ptr, places, slots, rows, x_width, y_width, stride_k, stride_n, HAS_BIAS: tl.constexpr, B: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    line = tl.program_id(1)
    first, last = tl.load(ptr + line), tl.load(ptr + line + 1)
    n = tl.arange(0, B)
    x_row = x + m.to(tl.int64)[:, None] * x_width
    total = tl.zeros([BM, B], dtype=tl.float32)
    length = (last - first) * B
    for start in range(0, length, BK):
        k = start + tl.arange(0, BK)
        live = k < length
        if B >= BK:  # one block a step: its place is one number, not one for every entry
            p, inner = first + start // B, start // BK % (B // BK) * BK + tl.arange(0, BK)
            place, slot = tl.load(places + p), tl.load(slots + p).to(tl.int64)
        else:
            p, inner = first + k // B, k % B
            place = tl.load(places + p, mask=live, other=0)
            slot = tl.load(slots + p, mask=live, other=0).to(tl.int64)
        a = tl.load(x_row + (place * B + inner)[None, :], mask=(m < rows)[:, None] & live[None, :], other=0.0)
        inside = (slot * (B * B) + inner * stride_k)[:, None] + n[None, :] * stride_n
        w = tl.load(blocks + inside, mask=live[:, None], other=0.0).to(x.dtype.element_ty)
        total = multiply(a, w, total)
    column = line * B + n
    if HAS_BIAS:
        total += tl.load(bias + column).to(tl.float32)[None, :]
    where = y + m.to(tl.int64)[:, None] * y_width + column[None, :]
    tl.store(where, total.to(y.dtype.element_ty), mask=(m < rows)[:, None])


@triton.jit
def _sample(dy, x, grad, lines, columns, rows, out, width, B: tl.constexpr, BM: tl.constexpr):
    p = tl.program_id(0)
    i, j = tl.load(lines + p), tl.load(columns + p)
    r = tl.arange(0, B)
    total = tl.zeros([B, B], dtype=tl.float32)
    for start in range(0, rows, BM):
        m = start + tl.arange(0, BM)
        far = m.to(tl.int64)
        a = tl.load(dy + far[None, :] * out + (i * B + r)[:, None], mask=(m < rows)[None, :], other=0.0)
        b = tl.load(x + far[:, None] * width + (j * B + r)[None, :], mask=(m < rows)[:, None], other=0.0)
        total = multiply(a, b, total)
    where = grad + p.to(tl.int64) * (B * B) + r[:, None] * B + r[None, :]
    tl.store(where, total.to(grad.dtype.element_ty))


@dataclass(frozen=True)
class Layout:
    """Where the kept blocks of an (out, in) weight lie, by block row and by block column.

    Attributes:
        shape: (out, in).
        block: B.
        ptr, columns: block rows: where each begins, and the block column of every block.
        lines: block row of every block.
        order: number of every block, in the order in which they are stored.
        ptr_t, lines_t, order_t: the same by block columns: where each begins, block rows, and which stored block it is.
    """

    shape: tuple[int, int]
    block: int
    ptr: Int[Tensor, " rows+1"]
    columns: Int[Tensor, " n"]
    lines: Int[Tensor, " n"]
    order: Int[Tensor, " n"]
    ptr_t: Int[Tensor, " cols+1"]
    lines_t: Int[Tensor, " n"]
    order_t: Int[Tensor, " n"]

    @classmethod
    def of(cls, shape: tuple[int, int], block: int, ptr: Int[Tensor, " rows+1"], columns: Int[Tensor, " n"]) -> Layout:
        """Made once per support, on the device of `ptr`.

        Raises:
            ShapeError: a block size that the kernels do not take, or a shape that it does not divide.
        """
        if block not in SIZES or any(s % block for s in shape):
            raise ShapeError(f"Blocks of {SIZES} that divide the weight are multiplied, not {block} in {shape}.")
        device = ptr.device
        lines = torch.repeat_interleave(torch.arange(ptr.numel() - 1, device=device), ptr.long().diff())
        order_t = columns.long().argsort(stable=True)
        counts = torch.bincount(columns.long(), minlength=shape[1] // block)
        ptr_t = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        order = torch.arange(columns.numel(), device=device)
        parts = (ptr, columns, lines, order, ptr_t, lines[order_t], order_t)
        return cls(shape, block, *(t.to(torch.int32).contiguous() for t in parts))


def block_linear(
    x: Float[Tensor, "rows in"],
    blocks: Float[Tensor, "n B B"],
    layout: Layout,
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "rows out"]:
    """y = x W^T + b, accumulated in float32, in the type of x (blocks are converted to it); differentiable in x, blocks and bias.

    Raises:
        KernelError: tensors that are not contiguous on one GPU.
        ShapeError: x or the blocks do not fit the layout.
    """
    return _BlockLinear.apply(x, blocks, layout, bias)  # type: ignore[return-value]


class _BlockLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
        at = (layout.ptr, layout.columns, layout.order)
        ctx.save_for_backward(x, blocks)
        ctx.layout, ctx.bias = layout, None if bias is None else bias.dtype
        return _product(x, blocks, layout, bias, at, (layout.shape[1], layout.shape[0]), (1, layout.block))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, blocks = ctx.saved_tensors
        dy = dy.contiguous()
        dx = block_linear_dx(dy, blocks, ctx.layout) if ctx.needs_input_grad[0] else None
        dw = block_linear_dw(dy, x, ctx.layout).to(blocks.dtype) if ctx.needs_input_grad[1] else None
        return dx, dw, None, dy.sum(0).to(ctx.bias) if ctx.needs_input_grad[3] else None


def block_linear_dx(
    dy: Float[Tensor, "rows out"], blocks: Float[Tensor, "n B B"], layout: Layout
) -> Float[Tensor, "rows in"]:
    """dx = dy W; see `block_linear`."""
    at = (layout.ptr_t, layout.lines_t, layout.order_t)
    return _product(dy, blocks, layout, None, at, layout.shape, (layout.block, 1))


def block_linear_dw(
    dy: Float[Tensor, "rows out"], x: Float[Tensor, "rows in"], layout: Layout
) -> Float[Tensor, "n B B"]:
    """dW = dy^T x on the kept blocks only, summed over rows in float32; no dense gradient exists.

    Raises:
        KernelError: tensors that are not contiguous on one GPU.
        ShapeError: dy or x do not fit the layout.
        DtypeError: dy and x differ in type.
    """
    device, dtype = together("The sampled product", dy, x, layout.columns), floats("The sampled product", dy, x)
    (out, width), b, n = layout.shape, layout.block, layout.columns.numel()
    if dy.shape != (x.shape[0], out) or x.shape[1] != width:
        raise ShapeError(f"dy {tuple(dy.shape)} and x {tuple(x.shape)} do not fit a weight of {layout.shape}.")
    grad = torch.empty((n, b, b), dtype=dtype, device=device)
    run(
        _sample,
        (n,),
        dy,
        x,
        grad,
        layout.lines,
        layout.columns,
        x.shape[0],
        out,
        width,
        B=b,
        **_sample_tiles(b, dtype.itemsize > 2),
    )
    return grad


def _product(x, blocks, layout: Layout, bias, at, widths: tuple[int, int], strides: tuple[int, int]) -> Tensor:
    ptr, places, slots = at
    device, b = together("The block-sparse product", x, blocks, bias, ptr), layout.block
    rows, (x_width, y_width) = x.shape[0], widths
    if x.dim() != 2 or x.shape[1] != x_width or blocks.shape != (places.numel(), b, b):
        raise ShapeError(
            f"{tuple(x.shape)} and blocks {tuple(blocks.shape)} do not fit {places.numel()} blocks of {b} in a weight of {layout.shape}."
        )
    y = torch.empty((rows, y_width), dtype=x.dtype, device=device)
    options = _tiles(rows, b, x.dtype.itemsize > 2)
    grid = (triton.cdiv(rows, options["BM"]), y_width // b)
    given = bias is not None
    run(
        _walk, grid, x, y, bias if given else x, blocks, ptr, places, slots, rows, x_width, y_width, *strides,
        HAS_BIAS=given, B=b, **options,
    )  # fmt: skip
    return y


def _sample_tiles(block: int, wide: bool) -> dict[str, int]:
    """Rows a step of the sampled product."""
    rows, warps, stages = {16: (32, 2, 3), 32: (64, 2, 2), 64: (64, 4, 4), 128: (64, 8, 5)}[block]
    return {"BM": rows, "num_warps": warps, "num_stages": 2 if wide else stages}


def _tiles(rows: int, block: int, wide: bool) -> dict[str, int]:
    """Tiles of rows of x and of kept columns. Short blocks want tall tiles, wide ones (128 x 128 sums) short ones.

    Five stages keep enough loads in flight; types of four bytes have room for two.
    """
    if rows <= 64:
        tall, deep, warps, stages = max(16, triton.next_power_of_2(rows)), 64, 2 if block < 128 else 4, 5
    else:
        tall, deep, warps, stages = {16: (256, 64, 8, 2), 32: (128, 32, 4, 5), 64: (128, 64, 4, 5), 128: (64, 64, 4, 5)}[block]  # fmt: skip
    return {"BM": tall, "BK": deep, "num_warps": warps, "num_stages": 2 if wide else stages}
