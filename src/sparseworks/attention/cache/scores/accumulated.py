"""Accumulated attention: what was attended to most so far (H2O), or in the last steps (ALISA's local sum)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.cache.held import KV_SCORES, Held, KVScore


@KV_SCORES.register("accumulated")
@dataclass(frozen=True)
class Accumulated(KVScore):
    """sum over all queries so far of softmax(scale q k')_j, mean over the query heads of a key head.

    (H2O: Zhang et al. 2023, arXiv 2306.14048.) With `decay` below 1 older queries count less: decay^age.
    """

    decay: float = 1.0

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """The running sum with this call's queries added; a token that was never held has 0."""
        probabilities = held.attention().mean(2)
        n = probabilities.shape[2]
        weight = self.decay ** torch.arange(n - 1, -1, -1, device=probabilities.device, dtype=torch.float32)
        new = (probabilities * weight[:, None]).sum(2)
        before = held.memory.get("sum")
        if before is not None:
            new = new + F.pad(before, (0, new.shape[-1] - before.shape[-1])) * self.decay**n
        held.memory["sum"] = new
        return new

    def kept(self, mask: Bool[Tensor, "batch kv_heads held"], held: Held) -> None:
        """Sums follow their tokens."""
        held.memory["sum"] = compacted(held.memory["sum"], mask & held.valid)


def compacted(x: Float[Tensor, "batch kv_heads held"], mask: Bool[Tensor, "batch kv_heads held"]) -> Tensor:
    """The marked entries of every row moved to the front, as the store moves its tokens; zeros behind them."""
    most = int(mask.sum(-1).max()) if mask.numel() else 0
    order = mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :most]
    return x.gather(-1, order) * mask.gather(-1, order)
