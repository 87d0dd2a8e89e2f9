"""Pooled windows of keys and the blocks they lie in: which share what, and who sees which."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.attention.heads import Heads


def count(keys: int, span: int, stride: int) -> int:
    """Whole windows of `span` keys, one every `stride`."""
    return max(0, (keys - span) // stride + 1)


def overlaps(keys: int, span: int, stride: int, block: int) -> Int[Tensor, "windows blocks"]:
    """Keys that window i, [i stride, i stride + span), has in block J, [J block, (J + 1) block), in strides, rounded up."""
    first = torch.arange(count(keys, span, stride))[:, None] * stride
    start = torch.arange(-(-keys // block)) * block
    shared = torch.minimum(first + span, start + block) - torch.maximum(first, start)
    return (shared.clamp(min=0) + stride - 1) // stride


def visible(heads: Heads, span: int, stride: int) -> Bool[Tensor, "queries windows"]:
    """Windows whose last key a query may see."""
    last = torch.arange(count(heads.keys, span, stride), device=heads.q.device) * stride + span - 1
    if not heads.causal:
        return torch.ones(heads.queries, len(last), dtype=torch.bool, device=last.device)
    return last <= torch.arange(heads.offset, heads.offset + heads.queries, device=last.device)[:, None]
