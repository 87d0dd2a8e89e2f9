"""Draft map: a softmax at the resolution of cells of a frame (DraftAttention), and nearness, which needs no data (Sparse VideoGen)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.orders.grid import text_units
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.pooled import pooled_logits
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("draft_map")
@dataclass(frozen=True)
class DraftMap(AttentionScore):
    """softmax over J of scale mean(q_I) . mean(k_J), inf for units of text, which the orders of a clip put last.

    With the order `cells` a unit is a cell of a frame, so this is the attention of frames pooled to a low resolution (Shen et al.
    2025, arXiv 2505.14708).
    """

    probability: ClassVar[bool] = True
    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Shares of a row of units."""
        allowed = heads.allowed(unit).to(heads.q.device)
        share = pooled_logits(heads, unit).masked_fill(~allowed, -torch.inf).softmax(-1)
        return share.masked_fill(text_units(heads, unit), torch.inf)


@ATTENTION_SCORES.register("nearness")
@dataclass(frozen=True)
class Nearness(AttentionScore):
    """-|middle of I - middle of J| in tokens, inf for units of text: a density over a whole map keeps the band of that density."""

    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "1 1 rows columns"]:
        """Distances, negative."""
        rows, columns = (torch.tensor(c, dtype=torch.float32).view(-1, 2).mean(1)
                         for c in (heads.rows_of(unit.rows), heads.columns_of(unit.cols)))  # fmt: skip
        near = -(rows[:, None] + heads.offset - columns).abs().to(heads.q.device)
        return near.masked_fill(text_units(heads, unit), torch.inf)[None, None]
