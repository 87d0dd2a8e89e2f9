"""Attention over every pair, or every pair of a window, by torch: keys are read once for the heads that share them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.heads import Heads


def attend_dense(heads: Heads) -> Float[Tensor, "batch heads queries d"]:
    """Attention over every allowed pair, by torch; keys are read once for the query heads that share them (Ainslie et al. 2023).

    A causal prefill is left to torch with its heads as they are, since queries that are folded do not lie on its diagonal.
    """
    if not heads.causal or heads.queries <= 1:
        return _folded(heads, slice(0, heads.queries), slice(0, heads.keys), None)
    if not heads.offset:
        return F.scaled_dot_product_attention(
            heads.q, heads.k, heads.v, scale=heads.scale, is_causal=True, enable_gqa=heads.group > 1
        )
    return _masked_rows(heads, heads.keys)


def attend_window(heads: Heads, window: int) -> Float[Tensor, "batch heads queries d"]:
    """Attention of every query to the last `window` keys, its own among them; some queries at a time."""
    return _masked_rows(heads, window)


def _masked_rows(heads: Heads, window: int) -> Tensor:
    """Some causal queries at a time, as many as keep their mask small, over the keys that they see."""
    some = max(1, min(256, (1 << 24) // max(1, heads.group * min(heads.keys, window + 256))))
    outs = []
    for first in range(0, heads.queries, some):
        rows = slice(first, min(first + some, heads.queries))
        keys = slice(max(0, heads.offset + first - window + 1), heads.offset + rows.stop)
        at = torch.arange(heads.offset + first, keys.stop, device=heads.q.device)[:, None]
        to = torch.arange(keys.start, keys.stop, device=heads.q.device)
        outs.append(_folded(heads, rows, keys, (to <= at) & (to > at - window)))
    return torch.cat(outs, 2) if outs else torch.zeros_like(heads.q)


def _folded(heads: Heads, rows: slice, keys: slice, mask: Bool[Tensor, "rows keys"] | None) -> Tensor:
    """The heads of a group as further rows of one head, so that nothing is repeated for them."""
    q = heads.q[:, :, rows].unflatten(1, (heads.kv_heads, heads.group)).flatten(2, 3)
    k, v = heads.k[:, :, keys], heads.v[:, :, keys]
    seen = None if mask is None else mask.repeat(heads.group, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=heads.scale)
    return out.unflatten(2, (heads.group, rows.stop - rows.start)).flatten(1, 2)
