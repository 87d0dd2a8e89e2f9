"""Local sum: what the last few queries attended to, beside the most recent tokens (ALISA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.cache.held import KV_SCORES, Held, KVScore
from sparseworks.attention.cache.scores.accumulated import compacted
from sparseworks.core.errors import BudgetError


@KV_SCORES.register("local_sum")
@dataclass(frozen=True)
class LocalSum(KVScore):
    """sum over the last `steps` queries of softmax(scale q k')_j, mean over the query heads of a key head.

    (Zhao et al. 2024, arXiv 2403.17312, who leave the number of steps open.) H2O's sum over the whole history favours old tokens.

    Attributes:
        recent: the most recent tokens, this share of all tokens seen, stay in any case: half of the budget in the paper.
    """

    steps: int = 8
    recent: float = 0.0

    def __post_init__(self):
        if self.steps < 1 or not 0 <= self.recent <= 1:
            raise BudgetError(f"At least one step and a share in [0, 1] are needed; got {self}.")

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """Sums over this call's last queries and those of the calls before."""
        new = held.attention(self.steps).mean(2)
        before = held.memory.get("rows")
        if before is not None:
            new = torch.cat([F.pad(before, (0, new.shape[-1] - before.shape[-1])), new], 2)[:, :, -self.steps :]
        held.memory["rows"] = new
        if not self.recent:
            return new.sum(2)
        count = (self.recent * held.seen).ceil().view(-1, 1, 1).to(held.positions.device)
        age = held.now.view(-1, 1, 1).to(held.positions.device) - held.positions
        return new.sum(2).masked_fill(held.valid & (age < count), torch.inf)

    def kept(self, mask: Bool[Tensor, "batch kv_heads held"], held: Held) -> None:
        """Rows follow their tokens."""
        rows, stays = held.memory["rows"], (mask & held.valid).unsqueeze(2)
        wide = stays.expand_as(rows).flatten(1, 2)
        held.memory["rows"] = compacted(rows.flatten(1, 2), wide).unflatten(1, rows.shape[1:3])
