"""Head vote: all heads of a layer choose one list of tokens together (S6, TokenSelect)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.heads import Heads, products
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("head_vote")
@dataclass(frozen=True)
class HeadVote(AttentionScore):
    """sum over heads h of softmax_j(scale q_h . k_hj) over the keys between the first `sink` and the last `local` ones.

    Softmax before the sum makes every head's vote weigh the same. Several queries of a unit vote by their mean.
    (Wu et al. 2024, arXiv 2411.02886.)

    Attributes:
        soft: False sums the logits instead, the vote that heads of large logits win.
        pool: width of a max pool over neighbouring tokens.
    """

    sink: int = 128
    local: int = 512
    soft: bool = True
    pool: int = 1

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch 1 rows columns"]:
        """Votes, for all heads alike; units of several keys count their best."""
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        rows = heads.rows_of(unit.rows)
        q = heads.pooled(heads.q.to(wide), rows)
        logits = products(q, heads.k.to(wide)) * heads.factor
        key = torch.arange(heads.keys, device=logits.device)
        last = torch.tensor([b - 1 + heads.offset for _, b in rows], device=logits.device)[:, None]
        middle = (key >= self.sink) & (key <= last - self.local)
        seen = middle if heads.causal else (key >= self.sink) & (key < heads.keys - self.local)
        logits = logits.masked_fill(~seen, -torch.inf)
        vote = (logits.softmax(-1).nan_to_num(0.0) if self.soft else logits).sum(1, keepdim=True)
        if self.pool > 1:
            pooled = F.max_pool1d(vote.flatten(0, 2).unsqueeze(1), self.pool, stride=1, padding=self.pool // 2)
            vote = pooled[:, 0, : heads.keys].view_as(vote)
        return vote if unit.cols == 1 else heads.pooled(vote.mT, heads.columns_of(unit.cols), "max").mT
