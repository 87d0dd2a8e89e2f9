"""Block saliency: what the block that is being generated would attend to, smoothed over neighbours (S6; Sparse-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.cache.held import KV_SCORES, Held, KVScore
from sparseworks.core.errors import BudgetError


@KV_SCORES.register("block_saliency")
@dataclass(frozen=True)
class BlockSaliency(KVScore):
    """max over |j' - j| <= kernel // 2 of mean_h (mean_i q_hi) . k_hj', the same for all heads of a layer (arXiv 2508.02558).

    Neighbours are those that are held, in the order of their positions.

    Raises:
        BudgetError: a kernel that is not odd.
    """

    kernel: int = 3

    def __post_init__(self):
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise BudgetError(f"The kernel has an odd size, got {self.kernel}.")

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """Scores; padding keeps none."""
        wide = torch.promote_types(held.q.dtype, torch.float32)
        q = held.q.to(wide).mean(2).unflatten(1, (held.k.shape[1], held.group)).mean(2)
        score = (
            (held.k.to(wide) @ q.unsqueeze(-1)).squeeze(-1).masked_fill(~held.valid, -torch.inf).mean(1, keepdim=True)
        )
        pooled = F.max_pool1d(score, self.kernel, stride=1, padding=self.kernel // 2)
        return pooled.expand(held.valid.shape)
