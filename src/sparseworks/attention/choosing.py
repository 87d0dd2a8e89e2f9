"""Choosing for one query: from a row of scores to lists of units, without a mask over the cache."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.listed import Listed
from sparseworks.attention.score import AttentionScore
from sparseworks.core.budget import Budget, Count, Density
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile
from sparseworks.exec.attention import best

if TYPE_CHECKING:
    from sparseworks.attention.method import AttentionMethod


def choose(heads: Heads, method: AttentionMethod) -> Listed | None:
    """What `select` keeps of the keys of one query a head on the CPU, as lists; None where it takes a mask to say it.

    Lists are made for a density or a count of single units of the query, by a score that judges all heads and without a rest.

    Raises:
        BudgetError: a budget that means nothing here.
    """
    score, unit = method.score, method.pattern.unit
    if score is None or not _plain(heads, method, score):
        return None
    found = score.listed(heads, method)
    if found is not None:
        return found
    if method.pattern.across or (method.always is not None and method.always.by_head):
        return None
    scores = score.row(heads, unit)
    if scores.dtype is torch.float64:  # compared as they are: the kernel would round ties into them
        return None
    scores = scores.float()
    if method.always is not None:
        scores.index_fill_(-1, always_units(heads, method), torch.inf)
    rows = scores.flatten(0, 1)
    keep = units_of(method.budget, torch.tensor(rows.shape[1]), torch.tensor(1), unit).expand(len(rows))
    return listed(heads, unit, *best(rows, keep))


def listed(heads: Heads, unit: Tile, ptr: Int[Tensor, " lists+1"], idx: Int[Tensor, " count"]) -> Listed:
    """The lists, an empty one with the last unit in it."""
    empty = (ptr.diff() == 0).nonzero()[:, 0].tolist()
    if empty:
        last = heads.grid(unit)[1] - 1
        edges = ptr.tolist()
        parts = [idx[a:b] if b > a else idx.new_tensor([last]) for a, b in pairwise(edges)]
        idx = torch.cat(parts)
        ptr = torch.tensor([0] + [len(p) for p in parts]).cumsum(0).int()
    return Listed(heads, unit, ptr, idx)


def always_units(heads: Heads, method: AttentionMethod) -> Int[Tensor, " units"]:
    """Units of which `always` keeps a key for the only query."""
    if method.always is None:
        return torch.empty(0, dtype=torch.long)
    at = method.always.columns(heads.offset, heads.keys)
    cols = method.pattern.unit.cols or heads.keys
    return at if cols == 1 else (at // cols).unique()


def units_of(budget: Budget, may: Int[Tensor, "*groups"], rows: Int[Tensor, "*groups"], unit: Tile) -> Tensor:
    """Units that a budget allows groups of `may` units in so many rows.

    Raises:
        BudgetError: a budget that means nothing here.
    """
    if isinstance(budget, Density):
        return (may * budget.value).round().long().clamp(min=1)
    if isinstance(budget, Count):
        return rows * ceil(budget.value / (unit.cols or 1))
    raise BudgetError(f"Attention takes a density, a count of keys, or a budget that looks at scores; not {budget}.")


def _plain(heads: Heads, method: AttentionMethod, score: AttentionScore) -> bool:
    """Whether lists say all that is to be said."""
    one = heads.phase == "decode" and method.pattern.unit.rows == 1 and heads.q.is_cpu and heads.clip is None
    judges = type(score).dense is AttentionScore.dense and type(score).attending is AttentionScore.attending
    return (
        one
        and judges
        and method.rest is None
        and score.shared != "union"
        and isinstance(method.budget, Density | Count)
    )
