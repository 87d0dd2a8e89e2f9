"""Vertical and slash: columns and diagonals that the last queries attend to (MInference); and the choice by divergence (FlexPrefill)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

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
        return torch.where(_touched(seen, far, heads, unit), 1.0, -torch.inf)


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
    return shares.mean(2), _by_distance(shares, heads.offset + rows.start) / shares.shape[2]


def _by_distance(shares: Float[Tensor, "batch heads rows keys"], first: int) -> Float[Tensor, "batch heads keys"]:
    """Sums over the diagonals, the first row being at position `first`: read with a step of one row and one key, they are columns."""
    rows, keys = shares.shape[2:]
    wide = keys + rows - 1
    flat = shares.new_zeros(*shares.shape[:2], rows * (wide + 1))
    flat[..., : rows * wide].unflatten(-1, (rows, wide))[..., rows - 1 :] = shares
    sums = flat.as_strided((*shares.shape[:2], rows, wide), (*flat.stride()[:2], wide + 1, 1)).sum(2).flip(-1)
    near = keys - 1 - first  # keys behind the first row: what comes before distance 0
    found = F.pad(sums[..., near:], (0, max(0, near + keys - wide)))[..., :keys]
    found[..., 1 : near + 1] += sums[..., :near].flip(-1)
    return found


def divergence(p: Float[Tensor, "*b n"], q: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """sqrt of the Jensen-Shannon divergence, in nats."""
    middle = (p + q) / 2
    one, two = (torch.special.xlogy(x, x / middle.clamp(min=1e-30)).sum(-1) for x in (p, q))
    return ((one + two) / 2).clamp(min=0).sqrt()


def _touched(
    columns: Bool[Tensor, "batch heads keys"], far: Bool[Tensor, "batch heads keys"], heads: Heads, unit: Tile
) -> Bool[Tensor, "batch heads rows columns"]:
    """Units that hold a pair of a column or of a diagonal. The distances of a unit are a range: how many of it are wanted, two sums tell."""
    rows, cuts = heads.rows_of(unit.rows), heads.columns_of(unit.cols)
    both = far if heads.causal else torch.cat([far[..., 1:].flip(-1), far], -1)
    zero = both.shape[-1] - far.shape[-1]  # where distance 0 lies
    below = F.pad(both.cumsum(-1, dtype=torch.int32), (1, 0))
    found = (
        (heads.pooled(columns.float().unsqueeze(-1), cuts, "max")[..., 0] > 0).unsqueeze(2).repeat(1, 1, len(rows), 1)
    )
    for (i, some), (j, wide) in product(_alike(rows), _alike(cuts)):
        height, width = rows[i][1] - rows[i][0], cuts[j][1] - cuts[j][0]
        hit = below > F.pad(below, (height + width - 1, 0))[..., : below.shape[-1]]
        first = heads.offset + zero + rows[i][1] - cuts[j][0]
        found[:, :, i : i + some, j : j + wide] |= _lines(hit, first, (some, height), (wide, width))
    return found


def _alike(cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where runs of cuts of one size begin and how many there are: the first and the last may be shorter."""
    edges = sorted({0, min(1, len(cuts)), max(0, len(cuts) - 1), len(cuts)})
    return [(a, b - a) for a, b in pairwise(edges)]


def _lines(hit: Bool[Tensor, "batch heads n"], first: int, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """hit[first + r tall - c wide] for `rows` = (count, tall) and `columns` = (count, wide), False beyond its ends, without an index a pair."""
    (count, tall), (many, wide) = rows, columns
    low, high = first - (many - 1) * wide, first + (count - 1) * tall
    line = F.pad(hit, (max(0, -low), max(0, high + 1 - hit.shape[-1])))[..., max(0, low) :].flip(-1).contiguous()
    start = line.shape[-1] - 1 - (high - low)  # of the last row: in the reversed line rows go back
    view = line.as_strided(
        (*line.shape[:2], count, many), (*line.stride()[:2], tall, wide), line.storage_offset() + start
    )
    return view.flip(2)


def _summed(x: Float[Tensor, "batch heads keys"], heads: Heads, unit: Tile) -> Float[Tensor, "batch heads columns"]:
    cuts = heads.columns_of(unit.cols)
    sizes = torch.tensor([b - a for a, b in cuts], device=x.device)
    return heads.pooled(x.unsqueeze(-1), cuts)[..., 0] * sizes
