"""Pooled probability with a guard: blocks whose tokens are unlike are not judged by their mean (SpargeAttn)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads, pooled
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.pooled import pooled_logits
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("self_similar")
@dataclass(frozen=True)
class SelfSimilar(AttentionScore):
    """softmax over J of scale mean(q_I) . mean(k_J); inf for rows and columns of blocks that are not alike inside.

    Alike is a mean cosine of all pairs above `similarity`; key blocks that are not leave the softmax (Zhang et al. 2025,
    arXiv 2502.18137; .6 with a mass of .98 as in their code).

    Attributes:
        similarity: of all heads, or of each (`attention.guards` chooses them).
    """

    similarity: float | tuple[float, ...] = 0.6
    probability: ClassVar[bool] = True
    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Pooled probabilities, inf where the guard says always.

        Raises:
            BudgetError: a likeness each for another number of heads.
        """
        least = self._least(heads)
        alike_q = self_similarity(heads.q, heads.rows_of(unit.rows)) > least
        alike_k = heads.shared(self_similarity(heads.k, heads.columns_of(unit.cols))) > least
        judged = alike_k.unsqueeze(-2) & heads.allowed(unit).to(heads.q.device)
        share = pooled_logits(heads, unit).masked_fill(~judged, -torch.inf).softmax(-1).nan_to_num(0.0)
        return share.masked_fill(~(alike_q.unsqueeze(-1) & alike_k.unsqueeze(-2)), torch.inf)

    def _least(self, heads: Heads) -> Float[Tensor, "heads_or_1 1"]:
        one = isinstance(self.similarity, int | float)
        least = torch.tensor([self.similarity] if one else self.similarity, device=heads.q.device)
        if len(least) not in (1, heads.heads):
            raise BudgetError(f"There are likenesses for {len(least)} heads, and {heads.heads} heads.")
        return least.unsqueeze(-1)


def self_similarity(
    x: Float[Tensor, "batch some tokens d"], cuts: list[tuple[int, int]]
) -> Float[Tensor, "batch some units"]:
    """Mean cosine of all pairs of tokens in a unit, |mean of x_i / |x_i||^2."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return pooled(torch.nn.functional.normalize(wide, dim=-1), cuts).square().sum(-1)
