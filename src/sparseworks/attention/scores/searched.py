"""Searched mass: the exact mass of blocks at a few denoising steps, with a log-sum-exp that is kept (S2; AdaSpa)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.run import dense_attention
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.exact import block_mass
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("searched_mass")
@dataclass(frozen=True)
class SearchedMass(AttentionScore):
    """mean over i in I of sum over j in J of e^(s_ij - lse_i), lse_i from the first search on.

    The first search makes two passes (lse, then masses), later ones a single one, since lse hardly changes over the denoising
    steps (Xia et al. 2025, arXiv 2502.21079).
    """

    probability: ClassVar[bool] = True
    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Masses; of the same tokens as at the first search, or the lse is found anew."""
        lse = heads.memory.get("lse")
        if lse is None or lse.shape != heads.q.shape[:-1]:
            lse = heads.memory["lse"] = dense_attention(heads)[1].detach()
        return block_mass(heads, unit, lse)
