"""Key norm: keys of small norm get much attention (Devoto et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.cache.held import KV_SCORES, Held, KVScore


@KV_SCORES.register("key_norm")
@dataclass(frozen=True)
class KeyNorm(KVScore):
    """-||k_j||: what the key alone says, no query needed (Devoto et al. 2024, arXiv 2406.11430)."""

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """Minus the Euclidean norm of each key."""
        return -held.k.float().norm(dim=-1)
