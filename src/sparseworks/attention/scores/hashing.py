"""Hash collisions: pairs that fall into the same bucket of random sign codes (S5; Scatterbrain, SCFA)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("collisions")
@dataclass(frozen=True)
class Collisions(AttentionScore):
    """Mean over the pairs of a unit of the rounds in which q and k have the same `bits` signs of random projections.

    Charikar 2002; as support of sparse attention: Chen et al. 2021, arXiv 2110.15343, Pagliardini et al. 2023, arXiv 2306.01160
    (16 buckets: 4 bits, one round).
    """

    bits: int = 4
    rounds: int = 1
    seed: int = 0
    shared: str | None = None

    def __post_init__(self):
        if not 1 <= self.bits <= 16 or self.rounds < 1:
            raise BudgetError(f"Codes have 1 to 16 bits and at least one round, got {self}.")

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Counts of buckets in the rows and in the columns, multiplied: no pair is looked at."""
        found, buckets = 0, 1 << self.bits
        one_hot = torch.nn.functional.one_hot
        for round_ in range(self.rounds):
            q, k = (one_hot(sign_codes(t, self.bits, self.seed + round_), buckets).float() for t in (heads.q, heads.k))
            rows, columns = heads.rows_of(unit.rows), heads.columns_of(unit.cols)
            found = found + heads.pooled(q, rows) @ heads.shared(heads.pooled(k, columns)).mT
        return found  # type: ignore[return-value]


def sign_codes(x: Float[Tensor, "batch some tokens d"], bits: int, seed: int = 0) -> Int[Tensor, "batch some tokens"]:
    """sum_b 2^b [r_b . x > 0] with normal r_b: the same for queries and keys of all heads."""
    draw = torch.Generator().manual_seed(seed)
    planes = torch.randn(x.shape[-1], bits, generator=draw).to(x.device)
    return ((x.float() @ planes > 0) << torch.arange(bits, device=x.device)).sum(-1)
