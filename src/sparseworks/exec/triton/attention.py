"""Attention of query blocks to chosen key blocks: softmax(scale q k^T) v over the kept blocks only, with the log-sum-exp of every query.

Shapes: q (batch, heads, queries, d), k and v (batch, kv_heads, keys, d), d a power of two from 16 to 128. The support is over ([batch,] heads or 1,
query blocks, key blocks) of `block` tokens, as `(ptr, idx)` of `Support.indices()`. With `causal`, query i sees keys up to i + shift, inside
the kept blocks.

A program has one block of queries of one head and walks its kept key blocks as FlashAttention-2 does (Dao 2023, arXiv 2307.08691): scores in
registers, running maximum and sum per query, values weighted by the second product; nothing of size queries x keys exists. A
block of keys is loaded transposed, (d, keys), so that both products read operands as tensor cores want them. The heads of a group read the
same keys; they lie beside each other in the grid so that the second reading comes from L2.
"""

# pyright: reportOperatorIssue=false, reportArgumentType=false
# Triton's own annotations do not know compile-time constants.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.exec.triton.launch import floats, run, together
from sparseworks.exec.triton.product import multiply
from sparseworks.exec.triton.softmax import absorb, finish, positive

BLOCKS = (16, 32, 64, 128)
WIDTHS = (16, 32, 64, 128)


@triton.jit
def _walk(a, k, v, idx, begin, end, keys, reach, scale, top, total, acc, MASKED: tl.constexpr, B: tl.constexpr, BN: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """The key blocks idx[begin:end], `BN` keys a step; masked: keys below `keys` and up to `reach` of each query."""
    d, step, parts = tl.arange(0, D), tl.arange(0, BN), B // BN
    for p in range(begin * parts, end * parts):
        n = tl.load(idx + p // parts) * B + p % parts * BN + step
        if MASKED:
            known = n < keys
            kt = tl.load(k + n[None, :] * D + d[:, None], mask=known[None, :], other=0.0)
            vt = tl.load(v + n[:, None] * D + d[None, :], mask=known[:, None], other=0.0)
        else:
            kt = tl.load(k + n[None, :] * D + d[:, None])
            vt = tl.load(v + n[:, None] * D + d[None, :])
        s = multiply(a, kt, tl.zeros([B, BN], dtype=tl.float32))
        if MASKED:
            s = tl.where((n < keys)[None, :] & (n[None, :] <= reach[:, None]), s, -float("inf"))
        top, total, acc = absorb(s, vt, scale, top, total, acc)
    return top, total, acc


@triton.jit
def _prefill(q, k, v, out, lse, ptr, idx, heads, kv_heads, queries, keys, shift, per_head, per_batch, scale, CAUSAL: tl.constexpr, B: tl.constexpr, BN: tl.constexpr, D: tl.constexpr):  # fmt: skip
    head, batch = tl.program_id(0), tl.program_id(2)
    at = tl.num_programs(1) - 1 - tl.program_id(1)  # the longest lists first
    line = batch * per_batch + head * per_head + at
    first, last = tl.load(ptr + line), tl.load(ptr + line + 1)
    m, d = at * B + tl.arange(0, B), tl.arange(0, D)
    mine = (batch * heads + head).to(tl.int64) * queries
    theirs = (batch * kv_heads + head // (heads // kv_heads)).to(tl.int64) * keys * D
    where = (mine + m)[:, None] * D + d[None, :]
    a = tl.load(q + where, mask=(m < queries)[:, None], other=0.0)
    reach = m + shift if CAUSAL else tl.zeros([B], dtype=tl.int32) + keys
    # Blocks before `free` are seen whole by every query: no mask is made for them.
    whole = keys // B
    if CAUSAL:
        whole = tl.minimum(whole, tl.maximum(at * B + shift + 1, 0) // B)
    free = last
    while tl.load(idx + free - 1, mask=free > first, other=-1) >= whole:
        free -= 1
    top = tl.full([B], -float("inf"), dtype=tl.float32)
    total = tl.zeros([B], dtype=tl.float32)
    acc = tl.zeros([B, D], dtype=tl.float32)
    k, v = k + theirs, v + theirs
    top, total, acc = _walk(a, k, v, idx, first, free, keys, reach, scale, top, total, acc, False, B, BN, D)
    top, total, acc = _walk(a, k, v, idx, free, last, keys, reach, scale, top, total, acc, True, B, BN, D)
    mean, log_sum = finish(top, total, acc)
    tl.store(out + where, mean.to(out.dtype.element_ty), mask=(m < queries)[:, None])
    tl.store(lse + mine + m, log_sum, mask=m < queries)


def block_attention(
    q: Float[Tensor, "batch heads queries d"],
    k: Float[Tensor, "batch kv_heads keys d"],
    v: Float[Tensor, "batch kv_heads keys d"],
    ptr: Int[Tensor, " lines+1"],
    idx: Int[Tensor, " kept"],
    block: int,
    causal: bool = False,
    scale: float | None = None,
    shift: int | None = None,
) -> tuple[Float[Tensor, "batch heads queries d"], Float[Tensor, "batch heads queries"]]:
    """softmax(scale q k^T over the kept blocks) v, and log sum exp (natural, float32). Without any key: zeros and -inf.

    Args:
        ptr, idx: of a support over ([batch,] heads or 1, query blocks, key blocks), ascending; a list of one head serves all.
        block: tokens of a block: 16, 32, 64 or 128.
        causal: query i sees keys up to i + shift.
        scale: default 1 / sqrt(d).
        shift: default keys - queries: the last query sees all.

    Raises:
        ShapeError: shapes, heads or pointers that do not fit, a block or d of another size.
        DtypeError: q, k, v of different or other types.
        KernelError: tensors that are not contiguous on one GPU.
    """
    what = "Block attention"
    ptr, idx = ptr.int(), idx.int()
    device, dtype = together(what, q, k, v, ptr, idx), floats(what, q, k, v)
    (batch, heads, queries, d), (_, kv_heads, keys, _) = _fitting(q, k, v)
    if block not in BLOCKS or d not in WIDTHS:
        raise ShapeError(f"{what} takes blocks of {BLOCKS} tokens and d of {WIDTHS}, got {block} and {d}.")
    lines = triton.cdiv(queries, block)
    lists = ptr.numel() - 1
    if lists not in (lines, heads * lines, batch * heads * lines):
        raise ShapeError(
            f"{what}: {lists} lists of blocks for {lines} query blocks, {heads} heads and {batch} sequences."
        )
    out = torch.empty_like(q)
    lse = torch.empty((batch, heads, queries), dtype=torch.float32, device=device)
    per_head, per_batch = lines if lists > lines else 0, heads * lines if lists > heads * lines else 0
    shift = keys - queries if shift is None else shift
    q, scaled = positive(q, scale)
    options = _tiles(block, d, dtype)
    run(
        _prefill, (heads, lines, batch), q, k, v, out, lse, ptr, idx, heads, kv_heads, queries, keys,
        shift, per_head, per_batch, scaled, CAUSAL=causal, B=block, D=d, **options,
    )  # fmt: skip
    return out, lse


def _fitting(q: Tensor, k: Tensor, v: Tensor) -> tuple[torch.Size, torch.Size]:
    fits = q.dim() == k.dim() == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    if not fits or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ShapeError(
            "Attention takes q (batch, heads, queries, d) and k, v (batch, kv_heads, keys, d) with heads a multiple of kv_heads, "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}."
        )
    return q.shape, k.shape


def _tiles(block: int, d: int, dtype: torch.dtype) -> dict[str, int]:
    """Keys a step: 64 in two stages leave room for two programs on a multiprocessor; float32 takes operands three times."""
    if dtype is torch.float32:
        return {"BN": min(block, 32), "num_warps": 8 if block * d >= 128 * 128 else 4, "num_stages": 1}
    return {"BN": min(block, 64), "num_warps": 4, "num_stages": 2}
