"""Attention of few queries over lists of tokens, one list a head."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError
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

    List l is `idx[ptr[l]:ptr[l + 1]]`, in any order; there are as many lists as heads, or as key heads. A token listed twice
    counts twice; an empty list gives 0 and -inf.

    Raises:
        ShapeError: sizes that do not fit together.
        DtypeError: types that are not floating or differ.
        KernelError: pointers or indices out of range.
    """
    check_heads(q, k, v, 3)
    heads, queries, d = q.shape
    kv_heads, tokens = k.shape[:2]
    lists = ptr.numel() - 1
    if lists not in (heads, kv_heads):
        raise ShapeError(f"There should be {heads} lists (heads) or {kv_heads} (key heads), got {lists}.")
    ptr, idx = ptr.detach().cpu().int().contiguous(), idx.detach().cpu().int().contiguous()
    check_lists(ptr, idx, lists, tokens)
    scale = scale_of(scale, d)
    module = native()
    if module is None or not q.is_cpu or q.dtype is not torch.float32 or d % STEP or not q.numel():
        return _reference(q.detach(), k.detach(), v.detach(), ptr, idx, scale)
    qs, ks, vs = prepared(q), prepared(k), prepared(v)
    out, lse = torch.empty_like(qs), qs.new_empty(heads, queries)
    buffers = (qs, ks, vs, ptr, idx, out, lse)
    sizes = heads, kv_heads, lists, queries, tokens, d
    module.tokens(*(t.data_ptr() for t in buffers), *sizes, scale, torch.get_num_threads())
    return out, lse


def _reference(q, k, v, ptr, idx, scale: float) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = q.new_zeros(q.shape), q.new_full(q.shape[:-1], -torch.inf, dtype=wide)
    lists = ptr.numel() - 1
    for head in range(q.shape[0]):
        kv = head * k.shape[0] // q.shape[0]
        one = head if lists == q.shape[0] else kv
        listed = idx[int(ptr[one]) : int(ptr[one + 1])].to(q.device).long()
        mask = torch.ones(1, len(listed), dtype=torch.bool, device=q.device)
        if len(listed):
            out[head], lse[head] = softmax_attend(
                q[head].to(wide), k[kv, listed].to(wide), v[kv, listed].to(wide), mask, scale
            )
    return out, lse
