"""The k largest entries of every row, values and indices, largest first, equal values by ascending index.

Shapes: x (rows, width); values and indices (rows, k). Where a row holds a NaN, all its values are NaN.

A program reads its part of a row once and keeps the maxima of 1024 groups of entries, a group being every 1024th. Their k-th largest, found by halving
an interval, bounds the k-th largest entry from below: at least k entries reach it, and hardly more, since with G groups about
-G ln(1 - k / G) do (33 for k = 32). They lie in the groups whose maximum reaches it, which are read again and their entries listed, in any
order; each finds its place in the result by counting the listed ones that come before it. Nothing is sorted, and the row is never held in
registers.

Where more entries reach the bound than the list takes (all large ones lie in one group, or many are equal), the interval is halved over the whole
row until the bound is the k-th largest itself, and then over places, until just enough of its equals are left.

Few rows are cut into parts, each of which leaves its k largest; the same kernel then takes the k largest of these. In the lists equal
values stand by ascending index and parts follow each other, so that ties fall as they would in one piece.
"""

# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# Triton's own annotations say that a reduction may return a tuple, and do not know that its `range` is iterated.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.exec.triton.launch import floats, run, splits, together

GROUPS = 1024
_SHARE = 64  # entries of a group, at least, where a row is cut: the second launch takes as long as a short part
MOST = GROUPS // 2
"""Largest k: with more, the maxima say too little about single entries."""


@triton.jit
def _order(x):
    """A float32 as a whole number of the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(order):
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _count(x, first, last, least, largest, STEP: tl.constexpr):
    """How many of x[first:last] lie from `least` to `largest`."""
    total = tl.zeros([STEP], dtype=tl.int32)
    for start in range(first, last, STEP):
        at = start + tl.arange(0, STEP)
        entry = tl.load(x + at, mask=at < last, other=0.0).to(tl.float32)
        total += ((at < last) & (entry >= least) & (entry <= largest)).to(tl.int32)
    return tl.sum(total)


@triton.jit
def _bound(x, first, last, k, least, largest, STEP: tl.constexpr):
    """`(bound, count)`: the k-th largest of x[first:last], which lies from `least` to `largest`, or a number below it that exactly k
    entries reach; how many do."""
    low, high = _order(least).to(tl.int64), _order(largest).to(tl.int64)  # their difference needs more than 32 bits
    count = _count(x, first, last, least, largest, STEP)
    while (low < high) & (count != k):
        middle = low + (high - low + 1) // 2
        reach = _count(x, first, last, _value(middle.to(tl.int32)), largest, STEP)
        count = tl.where(reach >= k, reach, count)
        low, high = tl.where(reach >= k, middle, low), tl.where(reach >= k, high, middle - 1)
    return _value(low.to(tl.int32)), count


@triton.jit
def _until(x, first, last, value, wanted, STEP: tl.constexpr):
    """The least end of x[first:end] with `wanted` entries of `value`."""
    low, high = first, last
    while low < high:
        middle = (low + high) // 2
        enough = _count(x, first, middle, value, value, STEP) >= wanted
        low, high = tl.where(enough, low, middle + 1), tl.where(enough, middle, high)
    return low


@triton.jit
def _append(x, groups, counter, found, places, many, first, last, bound, end, LIST: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """Entries above `bound`, and its equals before `end`, of the listed groups: to the lists, as long as there is room."""
    g, j = tl.arange(0, 32), tl.arange(0, 32)
    count = tl.zeros([32, 32], dtype=tl.int32)
    for start in range(0, many, 32):
        group = tl.load(groups + start + g, mask=start + g < many, other=0)
        for begin in range(first, last, 32 * STEP):
            at = begin + group[:, None] + (j * STEP)[None, :]
            live = (start + g < many)[:, None] & (at < last)
            entry = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
            enters = live & ((entry > bound) | ((entry == bound) & (at < end)))
            slot = tl.atomic_add(counter + at * 0, 1, mask=enters, sem="relaxed")
            tl.store(found + slot, entry, mask=enters & (slot < LIST))
            tl.store(places + slot, at, mask=enters & (slot < LIST))
            count += enters.to(tl.int32)
    tl.debug_barrier()
    return tl.sum(count)


@triton.jit
def _select(x, values, indices, maxima, groups, found, places, counter, width, span, k, LIST: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line = row * tl.num_programs(1) + part
    x += row * width
    maxima += line * STEP
    groups += line * STEP
    found += line * LIST
    places += line * LIST
    counter += line * 3
    first, step = part * span, tl.arange(0, STEP)
    last = tl.minimum(first + span, width)
    most, bad = tl.full([STEP], -float("inf"), dtype=tl.float32), tl.zeros([STEP], dtype=tl.int32)
    for start in tl.range(first, last, STEP, num_stages=4):
        at = start + step
        # Adding 0 makes 0 of -0.
        entry = tl.load(x + at, mask=at < last, other=-float("inf")).to(tl.float32) + 0.0
        most, bad = tl.maximum(most, entry), bad | (entry != entry).to(tl.int32)
    tl.store(maxima + step, most)
    tl.debug_barrier()
    largest = tl.max(most, axis=0)
    bound, _ = _bound(maxima, 0, STEP, k, tl.min(most, axis=0), largest, STEP)
    reaches = most >= bound
    slot = tl.atomic_add(counter + step * 0, 1, mask=reaches, sem="relaxed")
    tl.store(groups + slot, step, mask=reaches)
    tl.debug_barrier()
    many = tl.sum(reaches.to(tl.int32))
    count = _append(x, groups, counter + 1, found, places, many, first, last, bound, last, LIST, STEP)
    if count > LIST:
        bound, count = _bound(x, first, last, k, bound, largest, STEP)
        end = last
        if count > k:  # equals of the k-th largest
            above = count - _count(x, first, last, bound, bound, STEP)
            end = _until(x, first, last, bound, k - above, STEP)
        count = _append(x, groups, counter + 2, found, places, many, first, last, bound, end, LIST, STEP)
    i = tl.arange(0, LIST)
    mine, where = tl.load(found + i, mask=i < count), tl.load(places + i, mask=i < count)
    rank = tl.zeros([LIST], dtype=tl.int32)
    for start in range(0, count, 16):
        j = start + tl.arange(0, 16)
        rival, place = tl.load(found + j, mask=j < count)[None, :], tl.load(places + j, mask=j < count)[None, :]
        ahead = (rival > mine[:, None]) | ((rival == mine[:, None]) & (place < where[:, None]))
        rank += tl.sum((ahead & (j < count)[None, :]).to(tl.int32), axis=1)
    kept = (i < count) & (rank < k)
    tl.store(values + line * k + rank, mine.to(values.dtype.element_ty), mask=kept)
    tl.store(indices + line * k + rank, where, mask=kept)
    if tl.max(bad, axis=0) > 0:
        tl.debug_barrier()
        tl.store(values + line * k + i, float("nan"), mask=i < k)
        tl.store(indices + line * k + i, i * 0, mask=i < k)


def largest(x: Float[Tensor, "rows width"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of every row: values in the type of x, indices int32; NaN and 0 throughout for a row with a NaN.

    Raises:
        ShapeError: k beyond the width.
        DtypeError: not a floating type.
        KernelError: k above 512, or a tensor that is not contiguous on a GPU.
    """
    device = together("Top-k", x)
    floats("Top-k", x)
    rows, width = x.shape
    if not 0 <= k <= width:
        raise ShapeError(f"Top-k keeps between 0 and all {width} entries of a row, not {k}.")
    if k > MOST:
        raise KernelError(f"Top-k keeps at most {MOST} of a row, not {k}; use torch.topk.")
    parts = splits(device, max(rows, 1), max(1, width // (_SHARE * GROUPS)))
    span = triton.cdiv(triton.cdiv(width, parts), 16) * 16
    parts = triton.cdiv(width, span) if span else 1
    kept = max(16, triton.next_power_of_2(k))

    def room(size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty((rows, parts, size), dtype=dtype, device=device)

    values, indices = room(k, x.dtype), room(k)
    lists = room(GROUPS, torch.float32), room(GROUPS), room(2 * kept, torch.float32), room(2 * kept)
    counter = torch.zeros((rows, parts, 3), dtype=torch.int32, device=device)
    options = {"LIST": 2 * kept, "STEP": GROUPS, "num_warps": 8}
    run(_select, (rows, parts) if k else (0,), x, values, indices, *lists, counter, width, span, k, **options)
    if parts == 1 or k == 0:
        return values.reshape(rows, k), indices.reshape(rows, k)
    best, at = largest(values.reshape(rows, parts * k), k)
    return best, indices.reshape(rows, parts * k).gather(1, at.long())
