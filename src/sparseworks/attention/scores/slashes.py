"""Vertical and slash: columns and diagonals that the last queries attend to (MInference); and the choice by divergence (FlexPrefill)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.pooled import pooled_logits
from sparseworks.core.pattern import Tile
from sparseworks.core.select import top


@ATTENTION_SCORES.register("vertical_slash")
@dataclass(frozen=True)
class VerticalSlash(AttentionScore):
    """1 for units that hold a pair of one of the best columns or diagonals, -inf for the others; for a budget `Threshold(1)`.

    Columns and diagonals are ranked by the attention of the last `last` queries. (Jiang et al. 2024, arXiv 2407.02490.)
    """

    vertical: int = 512
    slash: int = 512
    last: int = 256
    shared: str | None = None

    def everything(self) -> AttentionScore:
        """All columns."""
        return replace(self, vertical=1 << 30)

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Units touched."""
        columns, diagonals = profiles(heads, self.last)
        seen = top(columns, min(self.vertical, heads.keys))
        far = top(diagonals, min(self.slash, heads.keys))
        kept = [_touched(seen, far, heads, rows, unit) for rows in heads.rows_of(unit.rows)]
        return torch.where(torch.stack(kept, 2), 1.0, -torch.inf)


@ATTENTION_SCORES.register("flex_blocks")
@dataclass(frozen=True)
class FlexBlocks(AttentionScore):
    """Shares of blocks: softmax of pooled products where these agree with the attention of the last block, else columns + diagonals.

    A head is judged by d = sqrt(JSD(pooled, true)) of its last queries over key blocks: d < tau takes the pooled shares.
    The others take p(I, J) in proportion to the mass of columns J plus that of diagonals I - J. (Lai et al. 2025, arXiv 2502.20766,
    who keep columns and diagonals one by one; here both lie on the grid of blocks.)
    """

    probability: ClassVar[bool] = True
    tau: float = 0.1
    last: int = 64
    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Shares that sum to 1 over a row."""
        allowed = heads.allowed(unit).to(heads.q.device)
        pooled = pooled_logits(heads, unit).masked_fill(~allowed, -torch.inf).softmax(-1)
        columns, diagonals = profiles(heads, self.last)
        by_block = _summed(columns, heads, unit)
        apart = (divergence(pooled[:, :, -1], by_block) >= self.tau)[..., None, None]
        first, cuts = heads.rows_of(unit.rows), heads.columns_of(unit.cols)
        middle = torch.tensor([(a + b) // 2 + heads.offset for a, b in first])[:, None] - torch.tensor(
            [(a + b) // 2 for a, b in cuts]
        )  # fmt: skip
        size = cuts[0][1] - cuts[0][0]
        by_distance = _summed(diagonals, heads, unit)[:, :, (middle.abs() // size).clamp(max=len(cuts) - 1)]
        lines = (by_block.unsqueeze(2) + by_distance).masked_fill(~allowed, 0.0)
        return torch.where(apart, lines / lines.sum(-1, keepdim=True).clamp(min=1e-30), pooled)


def profiles(heads: Heads, last: int) -> tuple[Float[Tensor, "batch heads keys"], Float[Tensor, "batch heads keys"]]:
    """Mean attention of the last queries by key, and by distance i - j (negative distances, without causality, by their size)."""
    rows = slice(max(0, heads.queries - last), heads.queries)
    shares = heads.scores(rows).softmax(-1)
    at = torch.arange(heads.offset, heads.offset + heads.queries, device=shares.device)[rows]
    distance = (at[:, None] - torch.arange(heads.keys, device=shares.device)).abs()
    by_distance = torch.zeros_like(shares[:, :, 0]).scatter_add(
        -1, distance.flatten().expand(*shares.shape[:2], -1), shares.flatten(2)
    )  # fmt: skip
    return shares.mean(2), by_distance / len(at)


def divergence(p: Float[Tensor, "*b n"], q: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """sqrt of the Jensen-Shannon divergence, in nats."""
    middle = (p + q) / 2
    one, two = (torch.special.xlogy(x, x / middle.clamp(min=1e-30)).sum(-1) for x in (p, q))
    return ((one + two) / 2).clamp(min=0).sqrt()


def _touched(
    columns: Bool[Tensor, "batch heads keys"], far: Bool[Tensor, "batch heads keys"], heads: Heads, rows: tuple[int, int], unit: Tile
) -> Bool[Tensor, "batch heads columns"]:  # fmt: skip
    at = torch.arange(*rows, device=columns.device) + heads.offset
    distance = at[:, None] - torch.arange(heads.keys, device=columns.device)
    slash = far[:, :, distance.abs()] & (distance >= 0 if heads.causal else torch.ones_like(distance, dtype=torch.bool))
    kept = (slash.any(2) | columns).float().unsqueeze(-1)
    return heads.pooled(kept, heads.columns_of(unit.cols), "max")[..., 0] > 0


def _summed(x: Float[Tensor, "batch heads keys"], heads: Heads, unit: Tile) -> Float[Tensor, "batch heads columns"]:
    cuts = heads.columns_of(unit.cols)
    sizes = torch.tensor([b - a for a, b in cuts], device=x.device)
    return heads.pooled(x.unsqueeze(-1), cuts)[..., 0] * sizes
