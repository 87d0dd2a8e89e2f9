"""Attention of few queries over lists of tokens, or over tokens that lie side by side, one list a head."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.exec.attention.checks import STEP, check_heads, check_lists, prepared, scale_of
from sparseworks.exec.attention.reference import softmax_attend
from sparseworks.exec.native import native


def attend_tokens(
    q: Float[Tensor, "heads queries d"],
    k: Float[Tensor, "kv_heads tokens d"],
    v: Float[Tensor, "kv_heads tokens d"],
    ptr: Int[Tensor, " lists+1"],
    idx: Int[Tensor, " count"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "heads queries d"], Float[Tensor, "heads queries"]]:
    """softmax(scale q k' over the listed tokens) v and its log-sum-exp; no gradients.

    List l is `idx[ptr[l]:ptr[l + 1]]`, in any order; there are as many lists as heads, or as key heads, and then a token is read once
    for all heads of a group. A token listed twice counts twice; an empty list gives 0 and -inf. Keys and values of a head lie side by
    side, heads anywhere (a view of a longer cache is not copied).

    Raises:
        ShapeError: sizes that do not fit together.
        DtypeError: types that are not floating or differ.
        KernelError: pointers or indices out of range.
    """
    check_heads(q, k, v, 3)
    lists = ptr.numel() - 1
    _check_count(lists, q, k)
    ptr, idx = ptr.detach().cpu().int().contiguous(), idx.detach().cpu().int().contiguous()
    check_lists(ptr, idx, lists, k.shape[1])
    return _attend(q, k, v, ptr[:-1], ptr[1:], idx, scale_of(scale, q.shape[2]))


def attend_ranges(
    q: Float[Tensor, "heads queries d"],
    k: Float[Tensor, "kv_heads tokens d"],
    v: Float[Tensor, "kv_heads tokens d"],
    begin: Int[Tensor, " lists"],
    end: Int[Tensor, " lists"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "heads queries d"], Float[Tensor, "heads queries"]]:
    """`attend_tokens` where list l is the tokens `begin[l]` to `end[l] - 1`: nothing is listed.

    Raises:
        ShapeError, DtypeError: as `attend_tokens`.
        KernelError: a range that goes backwards or out of the tokens.
    """
    check_heads(q, k, v, 3)
    _check_count(begin.numel(), q, k)
    begin, end = (t.detach().cpu().int().contiguous() for t in (begin, end))
    good = begin.shape == end.shape and int(begin.min()) >= 0 and int(end.max()) <= k.shape[1]
    if not good or bool((end < begin).any()):
        raise KernelError(f"The ranges do not rise within the {k.shape[1]} tokens.")
    return _attend(q, k, v, begin, end, None, scale_of(scale, q.shape[2]))


def _check_count(lists: int, q: Tensor, k: Tensor) -> None:
    if lists not in (q.shape[0], k.shape[0]):
        raise ShapeError(f"There should be {q.shape[0]} lists (heads) or {k.shape[0]} (key heads), got {lists}.")


def _attend(
    q: Tensor, k: Tensor, v: Tensor, begin: Tensor, end: Tensor, idx: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    heads, queries, d = q.shape
    kv_heads, lists, module = k.shape[0], begin.numel(), native()
    if module is None or not q.is_cpu or q.dtype is not torch.float32 or d % STEP or not q.numel():
        return _reference(q.detach(), k.detach(), v.detach(), begin, end, idx, scale)
    qs, ks, vs = prepared(q), k.detach(), v.detach()
    if not _side_by_side(ks, vs):
        ks, vs = prepared(ks), prepared(vs)
    out, lse = torch.empty_like(qs), qs.new_empty(heads, queries)
    if lists == kv_heads:  # the heads of a group are more queries of one head
        heads, queries = kv_heads, heads // kv_heads * queries
    stride = ks.stride(0) if kv_heads > 1 else 0
    addresses = [0 if t is None else t.data_ptr() for t in (qs, ks, vs, begin, end, idx, out, lse)]
    module.tokens(*addresses, heads, kv_heads, lists, queries, stride, d, scale, torch.get_num_threads())
    return out, lse


def _side_by_side(k: Tensor, v: Tensor) -> bool:
    """Whether the tokens of a head follow each other without gaps, and all heads at one distance."""
    d = k.shape[2]
    return k.stride() == v.stride() and k.stride()[1:] == (d, 1)


def _reference(q, k, v, begin, end, idx: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = q.new_zeros(q.shape), q.new_full(q.shape[:-1], -torch.inf, dtype=wide)
    lists = begin.numel()
    for head in range(q.shape[0]):
        kv = head * k.shape[0] // q.shape[0]
        one = head if lists == q.shape[0] else kv
        span = slice(int(begin[one]), int(end[one]))
        listed = span if idx is None else idx[span].to(q.device).long()
        keys, values = k[kv, listed].to(wide), v[kv, listed].to(wide)
        mask = torch.ones(1, len(keys), dtype=torch.bool, device=q.device)
        if len(keys):
            out[head], lse[head] = softmax_attend(q[head].to(wide), keys, values, mask, scale)
    return out, lse
