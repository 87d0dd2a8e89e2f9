"""Ragged chunks: tokens are scored by the chunk they lie in, chunks by mean query and mean key with a power of the length (DHSA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.boundaries import boundaries
from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("ragged_chunks")
@dataclass(frozen=True)
class RaggedChunks(AttentionScore):
    """scale mean(q_I) . mean(k_C) |C|^power for every token of chunk C (Xiong et al. 2025, arXiv 2510.24606: power 1/2).

    The length of the query side is one factor for a whole row of units and changes no choice.

    Attributes:
        power: 0 means, 1/2 as published, 1 sums.
        width: keys to each side that tell where a chunk begins.
        apart, least: boundaries are peaks over `apart` tokens, of at least `least` (where no predictor is trained).
    """

    power: float = 0.5
    width: int = 4
    apart: int = 8
    least: float = 0.5
    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Scores of tokens, of a unit of several the largest."""
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        chunk = boundaries(heads, self.width, self.apart, self.least).cumsum(-1) - 1
        q, k = heads.pooled(heads.q.to(wide), heads.rows_of(unit.rows)), heads.k.to(wide)
        count = torch.zeros(heads.batch, int(chunk.max()) + 1, device=k.device, dtype=wide)
        count = count.scatter_add(1, chunk, torch.ones_like(chunk, dtype=wide))
        at = chunk[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[-1])
        total = torch.zeros(*k.shape[:2], count.shape[1], k.shape[-1], device=k.device, dtype=wide).scatter_add(
            2, at, k
        )
        scale = count.clamp(min=1) ** (self.power - 1)
        score = q @ heads.shared(total * scale[:, None, :, None]).mT * heads.factor
        token = score.gather(-1, chunk[:, None, None].expand(*score.shape[:3], -1))
        return token if unit.cols == 1 else heads.pooled(token.mT, heads.columns_of(unit.cols), "max").mT
