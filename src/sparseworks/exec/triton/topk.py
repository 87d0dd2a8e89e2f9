"""The k largest latents of every row, values and indices, of x W^T + b, without writing the latents.

Shapes: x (rows, d), W (latents, d), b (latents); values and indices (rows, k), largest first, equal values by ascending index. k <= 128.

A program has `BM` rows and a span of latents. It computes a tile of `BN` latents in tensor cores and keeps, per row, the k largest seen so far in
registers with their indices. An entry of the tile enters only if it is above the row's threshold, the least of the kept ones: the largest of each
row's tile is taken until no row has one above its threshold. The n-th of N tiles has on average k / n such entries a row, about k ln N
in all, so most tiles need a few steps over registers. Sorting each tile into the kept ones would cost some 150 operations an
entry, more than the product itself; two passes, the first for a threshold, would compute the product twice and leave the number of
candidates unbounded. Few rows are split over spans of latents to fill the device, and the lists of the spans are merged by two stable sorts.

Exact for sums in float32: with float16 or bfloat16 inputs the values before rounding decide, so two latents that a dense product rounds to one number
are still told apart. Among equal sums the lower index is kept, as everywhere in the library. The latents must be finite.
"""

# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton's own annotations say that a reduction may return a tuple.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.exec.triton.launch import floats, run, splits, together
from sparseworks.exec.triton.product import multiply

MOST = 128


@triton.jit
def _encode(x, w, b, values, indices, rows, width, latents, span, k, K: tl.constexpr, HAS_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    m, split = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1)
    slot, j = tl.arange(0, K), tl.arange(0, BN)
    x_row = x + m.to(tl.int64)[:, None] * width
    # Slots beyond k are never the least; empty slots count as indices beyond all latents, so that the last of them goes first.
    kept = tl.zeros([BM, K], dtype=tl.float32) + tl.where(slot < k, -float("inf"), float("inf"))[None, :]
    index = tl.zeros([BM, K], dtype=tl.int32) + (latents + slot)[None, :]
    for start in range(split * span, tl.minimum((split + 1) * span, latents), BN):
        n = start + j
        s = tl.zeros([BM, BN], dtype=tl.float32)
        for first in range(0, width, BK):
            c = first + tl.arange(0, BK)
            a = tl.load(x_row + c[None, :], mask=(m < rows)[:, None] & (c < width)[None, :], other=0.0)
            d = tl.load(
                w + n.to(tl.int64)[None, :] * width + c[:, None],
                mask=(n < latents)[None, :] & (c < width)[:, None],
                other=0.0,
            )
            s = multiply(a, d, s)
        if HAS_BIAS:
            s += tl.load(b + n, mask=n < latents, other=0.0).to(tl.float32)[None, :]
        s = tl.where((n < latents)[None, :], s, -float("inf"))
        best, at = tl.max(s, axis=1, return_indices=True)
        least = tl.min(kept, axis=1)
        more = tl.max(tl.where(best > least, 1, 0), axis=0)
        while more > 0:
            enters = (best > least)[:, None]
            tied = kept == least[:, None]
            last = tl.max(tl.where(tied, index, -1), axis=1)
            leaves = enters & tied & (index == last[:, None])
            kept = tl.where(leaves, best[:, None], kept)
            index = tl.where(leaves, (start + at)[:, None], index)
            s = tl.where(enters & (j[None, :] == at[:, None]), -float("inf"), s)
            best, at = tl.max(s, axis=1, return_indices=True)
            least = tl.min(kept, axis=1)
            more = tl.max(tl.where(best > least, 1, 0), axis=0)
    where = (m.to(tl.int64) * tl.num_programs(1) + split)[:, None] * k + slot[None, :]
    mask = (m < rows)[:, None] & (slot < k)[None, :]
    tl.store(values + where, kept, mask=mask)
    tl.store(indices + where, index, mask=mask)


def topk_encode(
    x: Float[Tensor, "rows d"], weight: Float[Tensor, "latents d"], bias: Float[Tensor, " latents"] | None, k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of x W^T + b per row: values in the type of x, indices int64; largest first, equal ones by ascending index.

    Raises:
        ShapeError: a weight or bias that does not fit, or k beyond the latents.
        DtypeError: x and weight of different or other types.
        KernelError: k above 128, or tensors that are not contiguous on one GPU.
    """
    what = "Top-k encoding"
    device = together(what, x, weight, bias)
    floats(what, x, weight)
    (rows, width), latents = x.shape, weight.shape[0]
    if weight.shape != (latents, width) or (bias is not None and bias.shape != (latents,)):
        raise ShapeError(f"{what} takes a weight (latents, {width}) and a bias (latents), got {tuple(weight.shape)}.")
    if not 0 <= k <= latents:
        raise ShapeError(f"{what} keeps between 0 and all {latents} latents, not {k}.")
    if k > MOST:
        raise KernelError(f"{what} keeps at most {MOST} of a row in registers, not {k}; use torch.topk on the product.")
    if k == 0 or rows == 0:
        return x.new_empty(rows, k), torch.empty((rows, k), dtype=torch.int64, device=device)
    tall, wide = (32 if rows >= 32 else 16), 128
    parts = splits(device, triton.cdiv(rows, tall), triton.cdiv(latents, 8 * wide))
    span = triton.cdiv(triton.cdiv(latents, parts), wide) * wide
    parts = triton.cdiv(latents, span)
    values = torch.empty((rows, parts * k), dtype=torch.float32, device=device)
    indices = torch.empty((rows, parts * k), dtype=torch.int32, device=device)
    options = {
        "K": max(16, triton.next_power_of_2(k)),
        "BM": tall,
        "BN": wide,
        "BK": 64,
        "num_warps": 4,
        "num_stages": 3,
    }
    run(
        _encode, (triton.cdiv(rows, tall), parts), x, weight, x if bias is None else bias, values, indices, rows, width,
        latents, span, k, HAS_BIAS=bias is not None, **options,
    )  # fmt: skip
    return _largest(values, indices, k, x.dtype)


def _largest(values: Tensor, indices: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The k largest of the candidates, equal ones by ascending index: sorted by index, then stably by value."""
    indices, order = indices.sort(dim=1)
    values, by_value = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :k].to(dtype), indices.gather(1, by_value)[:, :k].long()
