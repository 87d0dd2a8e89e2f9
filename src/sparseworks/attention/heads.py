"""Heads: the queries, keys and values of one attention layer at one call, with all that a score may ask about them."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.attention.clusters import Clusters
from sparseworks.core.errors import ShapeError
from sparseworks.core.pattern import Tile
from sparseworks.exec.attention.checks import check_heads, scale_of

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Clip:
    """What the tokens of a video or an image are: `text` tokens first, then frames of height x width in raster order."""

    frames: int
    height: int
    width: int
    text: int = 0

    @property
    def frame(self) -> int:
        """Tokens of a frame."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.text + self.frames * self.frame


@dataclass(frozen=True)
class Heads:
    """softmax(scale q k') v is asked for; query i sits at position `offset + i` among the keys.

    Attributes:
        q, k, v: after rotary embedding. Query heads share key heads in groups of `group`.
        causal: query at position p sees keys 0..p.
        layer, layers: which of how many.
        step, steps: which denoising step of how many, where there are any.
        clip: the grid on which the tokens lie, where there is one.
        clusters: the units, where an order made ragged ones.
        prompt: tokens that are given, the first ones, to a model that denoises the others.
        hidden: what the layer's projections read, where the caller knows it.
        module: the attention module, where there is one.
        memory: what a score or a schedule keeps for this layer from call to call.
        learned: what is trained on the side for this layer, and outlives prompts.
        common: what the layers of a model leave for each other.

    Raises:
        ShapeError, DtypeError: tensors that do not fit together; fewer keys than queries where causal.
    """

    q: Float[Tensor, "batch heads queries d"]
    k: Float[Tensor, "batch kv_heads keys d"]
    v: Float[Tensor, "batch kv_heads keys d"]
    causal: bool = True
    scale: float | None = None
    layer: int = 0
    layers: int = 1
    step: int = 0
    steps: int = 1
    clip: Clip | None = None
    clusters: Clusters | None = None
    prompt: int = 0
    hidden: Float[Tensor, "batch tokens width"] | None = None
    module: nn.Module | None = None
    memory: MutableMapping[Any, Any] = field(default_factory=dict)
    learned: MutableMapping[Any, Any] = field(default_factory=dict)
    common: MutableMapping[Any, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_heads(self.q, self.k, self.v, 4)
        if self.causal and self.keys < self.queries:
            raise ShapeError(f"{self.queries} causal queries cannot be the last of {self.keys} keys.")
        if self.clip is not None and self.clip.tokens != self.keys:
            raise ShapeError(f"The clip has {self.clip.tokens} tokens, the keys are {self.keys}.")

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.q.shape[1]

    @property
    def kv_heads(self) -> int:
        """Key heads."""
        return self.k.shape[1]

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    @property
    def queries(self) -> int:
        """Queries of this call."""
        return self.q.shape[2]

    @property
    def keys(self) -> int:
        """Keys, those of earlier calls included."""
        return self.k.shape[2]

    @property
    def d(self) -> int:
        """Size of a head."""
        return self.q.shape[3]

    @property
    def offset(self) -> int:
        """Position of the first query."""
        return self.keys - self.queries if self.causal else 0

    @property
    def phase(self) -> Phase:
        """`decode` where one causal query looks back, else `prefill`."""
        return "decode" if self.causal and self.queries == 1 and self.keys > 1 else "prefill"

    @property
    def factor(self) -> float:
        """The scale of scores: as given, or 1 / sqrt(d)."""
        return scale_of(self.scale, self.d)

    def with_(self, **changes: Any) -> Heads:
        """A changed copy."""
        return replace(self, **changes)

    # -- per query head -------------------------------------------------------------------------------------------

    def shared(self, x: Float[Tensor, "batch kv_heads *rest"]) -> Float[Tensor, "batch heads *rest"]:
        """Something of key heads, for every query head."""
        return x.repeat_interleave(self.group, dim=1) if self.group > 1 else x

    def grouped(
        self, x: Float[Tensor, "batch heads *rest"], how: Literal["sum", "mean", "max"]
    ) -> Float[Tensor, "batch kv_heads *rest"]:
        """Something of query heads, reduced over those that share keys."""
        parts = x.unflatten(1, (self.kv_heads, self.group))
        return parts.amax(2) if how == "max" else parts.sum(2) if how == "sum" else parts.mean(2)

    def scores(self, rows: slice = slice(None)) -> Float[Tensor, "batch heads rows keys"]:
        """scale q k' of these queries, -inf for keys of the future, at least in float32."""
        wide = torch.promote_types(self.q.dtype, torch.float32)
        found = products(self.q[:, :, rows].to(wide) * self.factor, self.k.to(wide))
        if not self.causal:
            return found
        at = torch.arange(self.offset, self.offset + self.queries, device=self.q.device)[rows]
        return found.masked_fill_(torch.arange(self.keys, device=self.q.device) > at[:, None], -torch.inf)

    # -- on the grid of units -------------------------------------------------------------------------------------

    def rows_of(self, size: int | None) -> list[tuple[int, int]]:
        """First and last + 1 of the queries in each row of units, counted from the first query.

        Units lie at multiples of `size` positions, so the first row of a call that continues a sequence may be shorter.
        """
        return _cuts(self.offset, self.offset + self.queries, size)

    def columns_of(self, size: int | None) -> list[tuple[int, int]]:
        """First and last + 1 of the keys in each column of units."""
        return _cuts(0, self.keys, size)

    def edges(self, unit: Tile) -> tuple[Int[Tensor, "rows 2"], Int[Tensor, "columns 2"]]:
        """`rows_of` and `columns_of` as tensors."""
        return _edges(self.offset, self.offset + self.queries, unit.rows), _edges(0, self.keys, unit.cols)

    def grid(self, unit: Tile) -> tuple[int, int]:
        """Rows and columns of units."""
        return _count(self.offset, self.offset + self.queries, unit.rows), _count(0, self.keys, unit.cols)

    def unit_of(self, unit: Tile) -> tuple[Int[Tensor, " queries"], Int[Tensor, " keys"]]:
        """The row of units of every query, and the column of every key."""
        return _unit_of(self.offset, self.offset + self.queries, unit.rows), _unit_of(0, self.keys, unit.cols)

    def pairs(self, unit: Tile) -> Int[Tensor, "rows columns"]:
        """How many (query, key) pairs of each unit may be attended to at all."""
        rows, columns = self.edges(unit)
        tall, wide = rows.diff(dim=1), columns.diff(dim=1)[:, 0]
        if not self.causal:
            return tall * wide
        # Pairs (i, j) of a unit with j <= i: of every query the keys up to its own position.
        first, last = rows[:, :1] + self.offset, rows[:, 1:] + self.offset
        seen = lambda edge: _below(last, edge) - _below(first, edge)  # noqa: E731
        return seen(columns[:, 1]) - seen(columns[:, 0])

    def pairs_at(self, unit: Tile, columns: Int[Tensor, "rows some"]) -> Int[Tensor, "rows some"]:
        """The same of some columns of each row, where causal."""
        rows, columns_of = self.edges(unit)
        first, last = rows[:, :1] + self.offset, rows[:, 1:] + self.offset
        below = lambda edge: _below(last, edge) - _below(first, edge)  # noqa: E731
        return below(columns_of[columns, 1]) - below(columns_of[columns, 0])

    def allowed(self, unit: Tile) -> Bool[Tensor, "rows columns"]:
        """Units with at least one such pair: where causal, those that begin at or before the last query of their row."""
        rows, columns = self.edges(unit)
        seen = self.offset + rows[:, 1:] if self.causal else torch.full((len(rows), 1), self.keys)
        return columns[:, 0] < seen

    def pooled(
        self, x: Float[Tensor, "batch some tokens d"], cuts: list[tuple[int, int]], how: Literal["mean", "max", "min"] = "mean"
    ) -> Float[Tensor, "batch some units d"]:  # fmt: skip
        """Mean (or extremes) of the tokens of each unit; the last and the first may be shorter."""
        return pooled(x, cuts, how)


def products(
    q: Float[Tensor, "*batch heads rows d"], k: Float[Tensor, "*batch kv_heads keys d"]
) -> Float[Tensor, "*batch heads rows keys"]:
    """q . k of every query head with the keys it shares: the heads of a group are rows of one head, so that no key is repeated."""
    group = q.shape[-3] // k.shape[-3]
    if group == 1:
        return q @ k.mT
    folded = q.unflatten(-3, (k.shape[-3], group)).flatten(-3, -2)
    return (folded @ k.mT).unflatten(-2, (group, q.shape[-2])).flatten(-4, -3)


def pooled(
    x: Float[Tensor, "*some tokens d"], cuts: list[tuple[int, int]], how: Literal["mean", "max", "min"] = "mean"
) -> Float[Tensor, "*some units d"]:
    """Mean, largest or smallest of the tokens of each cut, a cut being first and last + 1."""
    if not cuts:
        return x[..., :0, :]
    size, first = max(b - a for a, b in cuts), cuts[0][1] - cuts[0][0]
    front = size - first if len(cuts) > 1 else 0
    back = len(cuts) * size - front - x.shape[-2]
    fill = {"mean": 0.0, "max": -torch.inf, "min": torch.inf}[how]
    blocks = F.pad(x, (0, 0, front, back), value=fill).unflatten(-2, (len(cuts), size))
    if how == "mean":
        count = torch.tensor([b - a for a, b in cuts], device=x.device, dtype=x.dtype)
        return blocks.sum(-2) / count[:, None]
    return blocks.amax(-2) if how == "max" else blocks.amin(-2)


def _cuts(first: int, last: int, size: int | None) -> list[tuple[int, int]]:
    if last <= first:
        return []
    if size is None:
        return [(0, last - first)]
    edges = [first, *range((first // size + 1) * size, last, size), last]
    return [(a - first, b - first) for a, b in pairwise(edges)]


def _count(first: int, last: int, size: int | None) -> int:
    """Units of which [first, last) holds a part."""
    return 0 if last <= first else 1 if size is None else (last - 1) // size - first // size + 1


def _edges(first: int, last: int, size: int | None) -> Tensor:
    """`_cuts` as a tensor; no list is made, so that it costs little where units are single tokens of a long cache."""
    units = _count(first, last, size)
    begin = torch.arange(units + 1) * (size or 0) + (first // size * size if size else 0) - first
    begin[0] = 0
    begin[units] = last - first if units else 0
    return torch.stack([begin[:-1], begin[1:]], 1)


def _unit_of(first: int, last: int, size: int | None) -> Tensor:
    """The unit in which each token lies."""
    at = torch.arange(first, max(first, last))
    return torch.zeros_like(at) if size is None else at // size - first // size


def _below(position: Tensor, edge: Tensor) -> Tensor:
    """sum over p < position of min(p + 1, edge): keys below `edge` that the queries before `position` see."""
    few = torch.minimum(position, edge)
    return few * (few + 1) // 2 + (position - few) * edge
