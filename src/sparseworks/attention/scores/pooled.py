"""Pooled score: the product of mean queries and mean keys of a unit (S1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads, products
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("pooled")
@dataclass(frozen=True)
class PooledProduct(AttentionScore):
    """scale mean(q_I) . mean(k_J): right where the tokens of a unit are alike."""

    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Logits of pooled queries and keys."""
        return pooled_logits(heads, unit)


def pooled_logits(heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
    """scale mean(q_I) . mean(k_J), at least in float32."""
    wide = torch.promote_types(heads.q.dtype, torch.float32)
    q = heads.pooled(heads.q.to(wide), heads.rows_of(unit.rows))
    k = heads.pooled(heads.k.to(wide), heads.columns_of(unit.cols))
    return products(q, k) * heads.factor
