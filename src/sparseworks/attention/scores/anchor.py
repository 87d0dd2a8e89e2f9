"""Gap to an anchor: how far a key's logit lies below the largest one of the first and the nearest keys (AnchorAttention)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads, pooled, products
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("anchor_gap")
@dataclass(frozen=True)
class AnchorGap(AttentionScore):
    """mean over i of scale q_i . k_j - mean over i of max over first and nearest j of scale q_i . k_j, for the queries of a row.

    A threshold of -12 keeps the keys within 12 of the anchor; nothing is sorted (Zhang et al. 2025, arXiv 2505.23520).

    Attributes:
        first, window: keys whose largest logit is the anchor: so many at the beginning, and so many before each query's unit.
        step: rows of units that share a list of keys (the largest of their gaps).
    """

    first: int = 128
    window: int = 128
    step: int = 1
    shared: str | None = None

    def __post_init__(self):
        if min(self.first, self.window, self.step) < 1:
            raise BudgetError(
                f"An anchor needs at least one first and one near key and a step of at least 1, got {self}."
            )

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Gaps, at most about 0; of a unit of several keys the largest."""
        cuts = heads.rows_of(unit.rows)
        q, k = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (heads.q, heads.k))
        q = q * heads.factor  # here rather than on all the logits
        gap = products(heads.pooled(q, cuts), k).sub_(self._anchor(heads, q, k, cuts))
        if unit.cols != 1:
            gap = pooled(gap.mT, heads.columns_of(unit.cols), "max").mT
        if self.step > 1:
            gap = torch.cat([g.amax(-2, keepdim=True).expand_as(g) for g in gap.split(self.step, -2)], -2)
        return gap

    def _anchor(self, heads: Heads, q: Tensor, k: Tensor, cuts: list[tuple[int, int]]) -> Tensor:
        found = []
        for a, b in cuts:
            start, end = heads.offset + a, heads.offset + b if heads.causal else min(heads.keys, b + self.window)
            near = torch.arange(max(0, start - self.window), end, device=q.device)
            keys = torch.cat([torch.arange(min(self.first, int(near[0])), device=q.device), near])
            logits = products(q[:, :, a:b], k[:, :, keys])
            if heads.causal:
                logits.masked_fill_(keys > torch.arange(start, end, device=q.device)[:, None], -torch.inf)
            found.append(logits.amax(-1).mean(-1))
        return torch.stack(found, -1).unsqueeze(-1)
