"""Coverage: the share of the recent queries' attention that a token holds; what is not covered passes by (Token Sparse Attention)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("coverage")
@dataclass(frozen=True)
class Coverage(AttentionScore):
    """mean over the last `recent` queries of their attention to token j, inf for those queries' own tokens.

    With units of one key for all queries a mass budget keeps, for each head, the fewest tokens that cover that much; only those
    attend, among themselves, the others pass by the residual path and may return in a later layer (Jo et al. 2026, arXiv 2602.03216; how many
    queries are recent is our reading).

    Attributes:
        recent: queries that vote.
        passes: whether queries outside the kept tokens pass by (False: they attend to the kept tokens).
    """

    recent: int = 64
    passes: bool = True
    probability: ClassVar[bool] = True
    shared: str | None = None

    def __post_init__(self):
        if self.recent < 1:
            raise BudgetError(f"At least one recent query votes, got {self.recent}.")

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """The same for every row of units."""
        first = max(0, heads.queries - self.recent)
        held = heads.scores(slice(first, heads.queries)).softmax(-1).mean(-2).unsqueeze(-1)
        cuts = heads.columns_of(unit.cols)
        size = torch.tensor([b - a for a, b in cuts], device=held.device)
        share = heads.pooled(held, cuts).squeeze(-1) * size
        last = torch.tensor([b for _, b in cuts], device=held.device) > heads.offset + first
        share = share.masked_fill(last, torch.inf)
        return share.unsqueeze(-2).expand(-1, -1, heads.grid(unit)[0], -1)

    def attending(self, heads: Heads, kept: Kept) -> Bool[Tensor, "batch heads queries"] | None:
        """Queries that are among the tokens kept by their row of units."""
        if not self.passes:
            return None
        places = torch.arange(heads.offset, heads.offset + heads.queries, device=kept.mask.device)
        parts = []
        for row, (a, b) in enumerate(heads.rows_of(kept.unit.rows)):
            column = places[a:b] // (kept.unit.cols or heads.keys)
            parts.append(kept.mask[:, :, row, column])
        return torch.cat(parts, -1)
