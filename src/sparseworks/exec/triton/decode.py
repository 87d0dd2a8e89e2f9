"""One query per head over chosen pages of its key-value cache, and the bounds by which pages are chosen.

Shapes: q (batch, heads, d); k and v (batch, kv_heads, length, d), read as pages of `page` tokens (the last may be short); `pages` (batch,
lists, count), page numbers with -1 for none, one list per head or per key-value head.

    decode:  softmax(scale q k^T over the tokens of the listed pages) v, and its log-sum-exp
    bounds:  low, high (batch, kv_heads, pages, d): least and largest key of a page in each dimension
    scores:  sum_d max(q_d low_d, q_d high_d) >= q . k for every key of the page (Quest, Tang et al. 2024, arXiv 2406.10774)

Decoding reads every listed key once and multiplies it with one query, so memory is the limit and the device must be full of loads in flight: the
list of one head is split over several programs (flash decoding), each leaves its weighted values with their log-sum-exp, and a
second, small kernel merges them. A step takes the tokens of several short pages together. Heads that share a list and its keys are one program: their queries, padded to 16, are the rows of one
tensor-core product, so grouped heads read the cache once.
"""

# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton's own annotations say that a reduction may return a tuple.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.exec.triton.attention import WIDTHS
from sparseworks.exec.triton.launch import floats, run, splits, together
from sparseworks.exec.triton.product import multiply
from sparseworks.exec.triton.softmax import absorb, finish, positive

PAGES = (16, 32, 64, 128)
_MOST_PARTS = 64  # the merge holds one vector of each in registers


@triton.jit
def _part(q, k, v, pages, means, sums, heads, kv_heads, lists, length, count, span, scale, GROUP: tl.constexpr, P: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr):  # fmt: skip
    split, one, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = heads // lists
    g, d, slot, step = tl.arange(0, GROUP), tl.arange(0, D), tl.arange(0, TOKENS // P), tl.arange(0, P)
    head = batch * heads + one * group + g
    a = tl.load(q + head[:, None] * D + d[None, :], mask=(g < group)[:, None], other=0.0)
    shared = one * kv_heads // lists
    theirs = (batch * kv_heads + shared).to(tl.int64) * length * D
    row = pages + (batch * lists + one) * count
    top = tl.full([GROUP], -float("inf"), dtype=tl.float32)
    total = tl.zeros([GROUP], dtype=tl.float32)
    acc = tl.zeros([GROUP, D], dtype=tl.float32)
    last = tl.minimum((split + 1) * span, count)
    for i in range(split * span, last, TOKENS // P):
        page = tl.load(row + i + slot, mask=i + slot < last, other=-1)
        n = tl.reshape(page[:, None] * P + step[None, :], [TOKENS])
        known = (n >= 0) & (n < length)  # page -1 lies before the cache
        kt = tl.load(k + theirs + n[None, :] * D + d[:, None], mask=known[None, :], other=0.0)
        vt = tl.load(v + theirs + n[:, None] * D + d[None, :], mask=known[:, None], other=0.0)
        s = multiply(a, kt, tl.zeros([GROUP, TOKENS], dtype=tl.float32))
        top, total, acc = absorb(tl.where(known[None, :], s, -float("inf")), vt, scale, top, total, acc)
    mean, log_sum = finish(top, total, acc)
    at = split * tl.num_programs(2) * heads + head
    tl.store(means + at[:, None] * D + d[None, :], mean, mask=(g < group)[:, None])
    tl.store(sums + at, log_sum, mask=g < group)


@triton.jit
def _merge(means, sums, out, lse, lines, count, S: tl.constexpr, D: tl.constexpr):
    line = tl.program_id(0)
    s, d = tl.arange(0, S), tl.arange(0, D)
    at = s * lines + line
    sizes = tl.load(sums + at, mask=s < count, other=-float("inf"))
    most = tl.max(sizes, axis=0)
    safe = tl.where(most == -float("inf"), 0.0, most)
    weight = tl.exp(sizes - safe)
    total = tl.sum(weight, axis=0)
    parts = tl.load(means + at[:, None] * D + d[None, :], mask=(s < count)[:, None], other=0.0)
    mean = tl.sum(parts * weight[:, None], axis=0) / tl.where(total > 0.0, total, 1.0)
    tl.store(out + line * D + d, mean.to(out.dtype.element_ty))
    tl.store(lse + line, tl.where(total > 0.0, safe + tl.log(tl.where(total > 0.0, total, 1.0)), -float("inf")))


@triton.jit
def _bounds(k, low, high, length, pages, P: tl.constexpr, D: tl.constexpr):
    page, line = tl.program_id(0), tl.program_id(1)
    n, d = page * P + tl.arange(0, P), tl.arange(0, D)
    where = (line.to(tl.int64) * length + n)[:, None] * D + d[None, :]
    known = (n < length)[:, None]
    at = (line.to(tl.int64) * pages + page) * D + d
    least = tl.min(tl.load(k + where, mask=known, other=float("inf")).to(tl.float32), axis=0)
    most = tl.max(tl.load(k + where, mask=known, other=-float("inf")).to(tl.float32), axis=0)
    tl.store(low + at, least.to(low.dtype.element_ty))
    tl.store(high + at, most.to(high.dtype.element_ty))


@triton.jit
def _scores(q, low, high, out, heads, kv_heads, pages, TILE: tl.constexpr, D: tl.constexpr):
    page, line = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1)
    d = tl.arange(0, D)
    shared = line // heads * kv_heads + line % heads // (heads // kv_heads)
    where = (shared.to(tl.int64) * pages + page)[:, None] * D + d[None, :]
    known = (page < pages)[:, None]
    a = tl.load(q + line * D + d).to(tl.float32)[None, :]
    b = tl.load(low + where, mask=known, other=0.0).to(tl.float32)
    c = tl.load(high + where, mask=known, other=0.0).to(tl.float32)
    tl.store(out + line * pages + page, tl.sum(tl.maximum(a * b, a * c), axis=1), mask=page < pages)


def page_attention(
    q: Float[Tensor, "batch heads d"],
    k: Float[Tensor, "batch kv_heads length d"],
    v: Float[Tensor, "batch kv_heads length d"],
    pages: Int[Tensor, "batch lists count"],
    page: int,
    scale: float | None = None,
) -> tuple[Float[Tensor, "batch heads d"], Float[Tensor, "batch heads"]]:
    """softmax(scale q k^T over the listed pages) v, and log sum exp (natural, float32). Without any token: zeros and -inf.

    Args:
        pages: page numbers below ceil(length / page), -1 for none, none twice; `lists` is heads or kv_heads.
        page: tokens of a page: 16, 32, 64 or 128.
        scale: default 1 / sqrt(d).

    Raises:
        ShapeError: shapes that do not fit, a page or d of another size.
        DtypeError: q, k, v of different or other types.
        KernelError: tensors that are not contiguous on one GPU.
    """
    what = "Page decode"
    pages = pages.int().contiguous()
    device = together(what, q, k, v, pages)
    floats(what, q, k, v)
    (batch, heads, d), (lists, count) = q.shape, pages.shape[1:]
    kv_heads, length = _cache(q, k, page)
    if k.shape != v.shape or pages.shape[0] != batch or lists not in (heads, kv_heads):
        raise ShapeError(
            f"{what}: {tuple(pages.shape)} lists for q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}."
        )
    options = _tiles(page, d)
    pages_a_step = options["TOKENS"] // page
    steps = triton.cdiv(count, pages_a_step)
    parts = splits(device, batch * lists, min(max(1, steps), _MOST_PARTS), waves=4)
    span = triton.cdiv(steps, parts) * pages_a_step
    parts = triton.cdiv(count, span) if span else 1
    means = torch.empty((parts, batch, heads, d), dtype=torch.float32, device=device)
    sums = torch.empty((parts, batch, heads), dtype=torch.float32, device=device)
    out, lse = torch.empty_like(q), torch.empty((batch, heads), dtype=torch.float32, device=device)
    group = max(16, triton.next_power_of_2(heads // lists))
    q, scaled = positive(q, scale)
    run(
        _part, (parts, lists, batch), q, k, v, pages, means, sums, heads, kv_heads, lists, length, count, span, scaled,
        GROUP=group, P=page, D=d, **options,
    )  # fmt: skip
    merged = {"S": triton.next_power_of_2(parts), "D": d, "num_warps": 4}
    run(_merge, (batch * heads,), means, sums, out, lse, batch * heads, parts, **merged)
    return out, lse


def _tiles(page: int, d: int) -> dict[str, int]:
    """Tokens a step: 64, or a whole page of 128; three stages where shared memory has room for several programs."""
    tokens = max(page, 64)
    return {"TOKENS": tokens, "num_warps": 2, "num_stages": 3 if tokens * d <= 1 << 13 else 2}


def page_bounds(
    k: Float[Tensor, "batch kv_heads length d"], page: int
) -> tuple[Float[Tensor, "batch kv_heads pages d"], Float[Tensor, "batch kv_heads pages d"]]:
    """Least and largest key of every page in each dimension: one program a page, exact in the type of k.

    Raises:
        ShapeError: a page or d of another size.
        KernelError: a tensor that is not contiguous on a GPU.
    """
    device = together("Page bounds", k)
    batch, kv_heads, length, d = k.shape
    _cache(k[:, :, 0] if length else k.new_zeros(batch, kv_heads, d), k, page)
    pages = triton.cdiv(length, page)
    low, high = (torch.empty((batch, kv_heads, pages, d), dtype=k.dtype, device=device) for _ in range(2))
    run(_bounds, (pages, batch * kv_heads), k, low, high, length, pages, P=page, D=d, num_warps=4)
    return low, high


def page_scores(
    q: Float[Tensor, "batch heads d"],
    low: Float[Tensor, "batch kv_heads pages d"],
    high: Float[Tensor, "batch kv_heads pages d"],
) -> Float[Tensor, "batch heads pages"]:
    """Upper bound of q . k over every page: sum_d max(q_d low_d, q_d high_d), float32.

    Raises:
        ShapeError: shapes that do not fit.
        KernelError: tensors that are not contiguous on one GPU.
    """
    device = together("Page scores", q, low, high)
    (batch, heads, d), pages = q.shape, low.shape[2]
    kv_heads, _ = _cache(q, low, PAGES[0])
    if low.shape != high.shape:
        raise ShapeError(f"Bounds of different shapes: {tuple(low.shape)} and {tuple(high.shape)}.")
    out = torch.empty((batch, heads, pages), dtype=torch.float32, device=device)
    grid = (triton.cdiv(pages, 32), batch * heads)
    run(_scores, grid, q, low, high, out, heads, kv_heads, pages, TILE=32, D=d, num_warps=4)
    return out


def _cache(q: Tensor, k: Tensor, page: int) -> tuple[int, int]:
    """`(kv_heads, length)` of a cache that fits the queries."""
    fits = q.dim() == 3 and k.dim() == 4 and q.shape[0] == k.shape[0] and q.shape[2] == k.shape[3]
    if not fits or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ShapeError(
            "Page kernels take q (batch, heads, d) and a cache (batch, kv_heads, length, d) with heads a multiple of kv_heads, "
            f"got {tuple(q.shape)} and {tuple(k.shape)}."
        )
    if page not in PAGES or q.shape[2] not in WIDTHS:
        raise ShapeError(f"Pages of {PAGES} tokens and d of {WIDTHS} are read, not {page} and {q.shape[2]}.")
    return k.shape[1], k.shape[2]
