"""Attention to summaries: one key and one value for several tokens, with a bias that says how much they stand for."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.clusters import members
from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept, Output
from sparseworks.core.pattern import Tile
from sparseworks.exec.attention.reference import softmax_attend


def attend_summaries(
    heads: Heads,
    unit: Tile,
    mask: Bool[Tensor, "batch heads rows items"],
    k: Float[Tensor, "batch kv_heads items d"],
    v: Float[Tensor, "batch kv_heads items d"],
    bias: Float[Tensor, "*some items"],
) -> Output:
    """softmax over the items of `mask` of scale q . k + bias, times v, and its log-sum-exp; rows of `unit` share their items."""
    q = F.pad(heads.q.to(k.dtype), (0, 1), value=1.0)
    k = torch.cat([k, (bias.to(k) / heads.factor).expand(k.shape[:-1]).unsqueeze(-1)], -1)
    k, v = heads.shared(k), heads.shared(v)
    if heads.clusters is not None:
        at = members(heads.clusters.rows, heads.queries).unsqueeze(-1).expand(-1, -1, -1, mask.shape[-1])
        out, lse = softmax_attend(q, k, v, mask.gather(2, at), heads.factor)
        return out.to(heads.q.dtype), lse
    outs, lses = [], []
    for row, (a, b) in enumerate(heads.rows_of(unit.rows)):
        out, lse = softmax_attend(q[:, :, a:b], k, v, mask[:, :, row, None], heads.factor)
        outs.append(out.to(heads.q.dtype))
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def summary_pairs(
    heads: Heads, unit: Tile, items: Float[Tensor, "batch heads rows columns"]
) -> Float[Tensor, "batch heads"]:
    """Products of queries with `items` summaries of each unit, every query of a row of units with all of that row."""
    if heads.clusters is not None:
        return (items.sum(-1) * heads.clusters.rows).sum(-1)
    tall = sizes(heads.rows_of(unit.rows), items.double())
    return (items.sum(-1) * tall).sum(-1)


def left_out(heads: Heads, kept: Kept) -> Bool[Tensor, "batch heads rows columns"]:
    """Units that are not kept and that every query of their row sees whole: what a summary can stand in for."""
    if kept.clusters is not None:
        return ~kept.mask & (kept.clusters.wide() > 0).unsqueeze(-2)
    tall, wide = (torch.tensor(c).view(-1, 2).diff(dim=1)[:, 0]
                  for c in (heads.rows_of(kept.unit.rows), heads.columns_of(kept.unit.cols)))  # fmt: skip
    whole = (heads.pairs(kept.unit) == tall[:, None] * wide).to(kept.mask.device)
    return (~kept.mask & whole).expand(heads.batch, heads.heads, -1, -1)


def sizes(cuts: list[tuple[int, int]], like: Tensor) -> Float[Tensor, " units"]:
    """Tokens of every unit."""
    return torch.tensor([b - a for a, b in cuts], device=like.device, dtype=like.dtype)
