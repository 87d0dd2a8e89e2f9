"""Window vote: what the last queries attend to (SnapKV)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.cache.held import KV_SCORES, Held, KVScore


@KV_SCORES.register("window_vote")
@dataclass(frozen=True)
class WindowVote(KVScore):
    """mean over the last `window` queries and the query heads of a key head of softmax(scale q k')_j, then a 1-D average pool.

    (SnapKV: Li et al. 2024, arXiv 2404.14469; the window itself stays by `always=Window(window)`.)
    """

    window: int = 32
    pool: int = 5

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """Votes of the last queries."""
        vote = held.attention(self.window).mean((2, 3))
        if self.pool == 1:
            return vote
        pooled = F.avg_pool1d(vote, self.pool, stride=1, padding=self.pool // 2, count_include_pad=False)
        return torch.where(held.valid, pooled[..., : vote.shape[-1]], vote)
