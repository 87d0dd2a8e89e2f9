"""Expected attention: what queries drawn like the past ones would attend to (Devoto et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.cache.held import KV_SCORES, Held, KVScore


@KV_SCORES.register("expected_attention")
@dataclass(frozen=True)
class ExpectedAttention(KVScore):
    """(softmax_j(mu . k_j s + s^2 k_j' C k_j / 2) + epsilon) ||v_j||, mu and C the mean and covariance of the queries of the prompt.

    E[e^{s q . k}] for normal q. (Devoto et al. 2025, arXiv 2510.00636.) Ours takes the statistics of queries after rotary
    embedding as they are; the paper rotates those before it to the positions that come next.
    """

    epsilon: float = 0.0
    phases: ClassVar[frozenset[str]] = frozenset({"prefill", "between_turns"})

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """Mean over the query heads of a key head."""
        q = held.q.float().unflatten(1, (held.k.shape[1], held.group))
        k = held.k.float().unsqueeze(2)
        mean = q.mean(-2, keepdim=True)
        centred = q - mean
        spread = centred.mT @ centred / max(q.shape[-2] - 1, 1)
        logits = (mean @ k.mT)[..., 0, :] * held.scale + ((k @ spread) * k).sum(-1) * held.scale**2 / 2
        share = logits.masked_fill(~held.valid.unsqueeze(2), -torch.inf).softmax(-1).mean(2)
        return (share + self.epsilon) * held.v.float().norm(dim=-1)
