"""Scores of pairs of tokens on the grid of larger units."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.core.pattern import Tile


def on_grid(
    scores: Float[Tensor, "batch heads queries keys"], heads: Heads, unit: Tile
) -> Float[Tensor, "batch heads rows columns"]:
    """The largest score of the pairs of a unit that are not of the future."""
    if heads.causal and heads.queries > 1:
        at = torch.arange(heads.offset, heads.offset + heads.queries, device=scores.device)
        scores = scores.masked_fill(torch.arange(heads.keys, device=scores.device) > at[:, None], -torch.inf)
    if unit.rows != 1:
        scores = heads.pooled(scores, heads.rows_of(unit.rows), "max")
    return scores if unit.cols == 1 else heads.pooled(scores.mT, heads.columns_of(unit.cols), "max").mT
