"""Which units are kept: scores, an allowed grid, a budget, and what stays in any case."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.budgets import CallBudget
from sparseworks.attention.choosing import choose, units_of
from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept
from sparseworks.attention.masks.base import Extent, Mask, Span
from sparseworks.core.budget import Budget, Count, Density, Threshold
from sparseworks.core.errors import BudgetError, NonFiniteError
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.select import top

if TYPE_CHECKING:
    from sparseworks.attention.method import AttentionMethod


def select(heads: Heads, method: AttentionMethod) -> Kept:
    """score -> budget -> kept units, with `always` among them and at least one unit for every query that sees a key.

    Where one query looks back they are lists if the method allows, see `choose`: no mask over a long cache is made.

    Raises:
        BudgetError: a budget that means nothing here.
        NonFiniteError: NaN scores.
    """
    if heads.clusters is not None:
        return select_clusters(heads, method)
    unit, listed = method.pattern.unit, choose(heads, method)
    if listed is not None:
        return listed
    allowed = heads.allowed(unit).to(heads.q.device)
    must = forced(heads, method, unit) & allowed
    if method.score is None:
        mask = must
    elif _searches(method) and (beam := method.score.beam(heads, unit)) is not None:
        if bool((beam[1].isnan() & (beam[0] < allowed.shape[-1])).any()):
            raise NonFiniteError(f"{method.name}: the scores of layer {heads.layer} hold NaN.")
        mask = keep_beam(*beam, allowed, must, method.budget, unit)
    else:
        scores = _scores(heads, method, unit, allowed)
        budget = method.budget.at(heads) if isinstance(method.budget, CallBudget) else method.budget
        mask = keep(scores, allowed, must, method.pattern, budget, unit)
        if method.score.shared == "union" and heads.group > 1:
            mask = heads.shared(mask.expand(-1, heads.heads, -1, -1).unflatten(1, (heads.kv_heads, -1)).any(2))
        if method.rest is not None and method.rest.uses_scores:
            heads.memory["scores"] = scores
    whole = None if method.score is None else method.score.dense(heads)
    if whole is not None:
        mask = mask | (whole[..., None, None] & allowed)
    kept = Kept(_no_row_empty(mask, allowed), unit)
    return kept if method.score is None else replace(kept, queries=method.score.attending(heads, kept))


def select_clusters(heads: Heads, method: AttentionMethod) -> Kept:
    """The same where units are ragged clusters: greedily by score per key, until a density of the pairs is spent; every row keeps one.

    Scores are of one query, so that score x queries over pairs, which are queries x keys, is gained per pair.

    Raises:
        BudgetError: no score, a mask that is always kept, or a budget other than a density.
    """
    clusters, score = heads.clusters, method.score
    assert clusters is not None
    if score is None or method.always is not None or not isinstance(method.budget, Density):
        raise BudgetError(f"Clusters are kept by a score and a density of the pairs; got {method.composition}.")
    scores = score(heads, method.pattern.unit).expand(heads.batch, heads.heads, *clusters.grid)
    if bool(scores.isnan().any()):
        raise NonFiniteError(f"{method.name}: the scores of layer {heads.layer} hold NaN.")
    pairs, wide = clusters.pairs(), clusters.wide().unsqueeze(-2)
    gain = torch.where(wide > 0, scores / wide.clamp(min=1), -torch.inf)
    order = gain.flatten(2).argsort(dim=-1, descending=True, stable=True)
    spent = pairs.flatten(2).gather(-1, order).cumsum(-1)
    taken = spent <= round(method.budget.value * heads.queries * heads.keys)
    mask = torch.zeros_like(taken).scatter(-1, order, taken).view_as(gain)
    best = torch.zeros_like(mask).scatter(-1, gain.argmax(-1, keepdim=True), True)
    return Kept(torch.where(mask.any(-1, keepdim=True), mask, best), method.pattern.unit, clusters=clusters)


def keep(
    scores: Float[Tensor, "batch heads rows columns"],
    allowed: Bool[Tensor, "rows columns"],
    forced: Bool[Tensor, "batch heads rows columns"],
    pattern: Pattern,
    budget: Budget,
    unit: Tile,
) -> Bool[Tensor, "batch heads rows columns"]:
    """The best units of every group: a row of units, a head (`group` is the whole map), or a layer (`across`).

    What is forced, or of infinite score, counts against a density or a count, and is added to what a mass, a threshold or another
    scored budget keeps; of the mass it holds no part.
    A count is of keys per query: ceil(count / keys of a unit) units a row.
    """
    inside = allowed.expand_as(scores)
    forced = (forced | (scores == torch.inf)) & inside
    if isinstance(budget, Threshold):
        return _reached(scores, inside, budget) | forced
    if budget.needs_scores:
        open_ = inside & ~scores.isinf()
        grouped, back = _groups(scores.masked_fill(~open_, 0.0 if _is_mass(budget) else -torch.inf), pattern)
        counts = budget.counts(grouped)
        ranked, _ = _groups(scores.masked_fill(~open_, -torch.inf), pattern)
        return (back(top(ranked, counts)) & open_) | forced
    dead = ~(inside & (scores > -torch.inf)) & ~forced
    ranked, back = _groups(scores.masked_fill(forced, torch.inf).masked_fill_(dead, -torch.inf), pattern)
    may, rows = (m.expand(ranked.shape[:-1]) for m in _room(allowed, scores.shape[1], pattern))
    must, live = (_groups(m, pattern)[0].sum(-1, dtype=torch.int32) for m in (forced, ~dead))
    counts = torch.maximum(units_of(budget, may, rows, unit), must).minimum(live)
    return back(top(ranked, counts.long())) & ~dead


def _searches(method: AttentionMethod) -> bool:
    """Whether rows, each head's for itself, choose so many of what a search ends at."""
    score, rest = method.score, method.rest
    by_row = method.pattern.group.rows is not None and not method.pattern.across
    plain = score is not None and score.shared is None and not (rest is not None and rest.uses_scores)
    return plain and by_row and isinstance(method.budget, Density | Count)


def keep_beam(
    columns: Int[Tensor, "batch heads rows count"],
    scores: Float[Tensor, "batch heads rows count"],
    allowed: Bool[Tensor, "rows columns"],
    forced: Bool[Tensor, "batch heads rows columns"],
    budget: Budget,
    unit: Tile,
) -> Bool[Tensor, "batch heads rows columns"]:
    """What `keep` keeps of a row of units where all but the listed columns are -inf (and none is inf)."""
    last = allowed.shape[-1]
    listed = columns.clamp(max=last)
    open_ = F.pad(allowed & ~forced, (0, 1)).expand(*columns.shape[:3], -1).gather(-1, listed) & (scores > -torch.inf)
    may, must = allowed.sum(-1), (forced & allowed).sum(-1)
    room = torch.minimum(units_of(budget, may, (may > 0).long(), unit) - must, open_.sum(-1)).clamp(min=0)
    best = top(scores.masked_fill(~open_, -torch.inf), room.expand(columns.shape[:3])) & open_
    mask = F.pad(forced & allowed, (0, 1)).expand(*columns.shape[:3], -1).clone()
    return mask.scatter_(-1, listed.masked_fill(~best, last), True)[..., :-1]


def _holds_nan(scores: Tensor, allowed: Tensor) -> bool:
    """Whether a unit that may be kept has a score that is no number: rows that see no key may."""
    return bool(scores.numel() and scores.amax().isnan()) and bool((scores.isnan() & allowed).any())


def _reached(scores: Tensor, inside: Tensor, budget: Threshold) -> Tensor:
    """Units that reach a threshold: nothing needs to be sorted, or counted."""
    return (scores >= max(budget.value, torch.finfo(scores.dtype).min)) & inside


def _room(allowed: Bool[Tensor, "rows columns"], heads: int, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Units that each group may keep, and rows of it that may keep any."""
    may = allowed.sum(-1)
    if pattern.group.rows is not None and not pattern.across:
        return may, (may > 0).long()
    many = heads if pattern.across else 1
    return may.sum() * many, (may > 0).sum() * many


def _is_mass(budget: Budget) -> bool:
    return getattr(budget, "registered_name", "") in ("mass", "residual", "head_mass")


def _groups(x: Tensor, pattern: Pattern):
    """(groups..., units of a group) and the way back."""
    if pattern.across:
        flat = x.flatten(1)
    elif pattern.group.rows is None:
        flat = x.flatten(2)
    else:
        flat = x
    return flat, lambda mask: mask.view(x.shape)


def _scores(heads: Heads, method: AttentionMethod, unit: Tile, allowed: Tensor) -> Tensor:
    score = method.score
    assert score is not None
    found = score(heads, unit)
    if _holds_nan(found, allowed):
        raise NonFiniteError(f"{method.name}: the scores of layer {heads.layer} hold NaN where a unit may be kept.")
    if score.shared not in (None, "union") and heads.group > 1 and found.shape[1] == heads.heads:
        found = heads.shared(heads.grouped(found, score.shared))  # type: ignore[arg-type]
    if method.budget.needs_scores and _is_mass(method.budget) and not score.probability:
        sure = found == torch.inf
        found = found.masked_fill(sure | ~allowed, -torch.inf).softmax(-1).nan_to_num(0.0).masked_fill(sure, torch.inf)
    return found.expand(-1, heads.heads, -1, -1)


def forced(heads: Heads, method: AttentionMethod, unit: Tile) -> Bool[Tensor, "batch heads rows columns"]:
    """Units that `always` keeps, and those of the text of a clip."""
    text = heads.clip.text if heads.clip is not None and method.order is None else 0
    found = _with_text(heads, unit, text)
    return found if method.always is None else found | mask_on_grid(method.always, heads, unit).to(heads.q.device)


def _with_text(heads: Heads, unit: Tile, text: int) -> Bool[Tensor, "1 1 rows columns"]:
    """Units of the text of a clip: it attends to all and all attend to it. (Orders put it elsewhere, and keep it themselves.)"""
    rows, columns = ((edges[:, 0] < text).to(heads.q.device) for edges in heads.edges(unit))
    own = rows if heads.queries == heads.keys else torch.zeros_like(rows)
    return (own[:, None] | columns)[None, None]


def mask_on_grid(mask: Mask, heads: Heads, unit: Tile) -> Bool[Tensor, "1 heads rows columns"]:
    """Units in which a mask keeps a pair.

    Raises:
        ShapeError: positions or heads that the mask is not made for.
    """
    spans = []
    for edges, start in zip(heads.edges(unit), (heads.offset, 0), strict=True):
        spans.append((edges[:, 0] + start, edges[:, 1] + start - 1))
    (above, below), (left, right) = spans
    rows, columns = Span(above[:, None], below[:, None]), Span(left[None], right[None])
    head = torch.arange(heads.heads if mask.by_head else 1).view(-1, 1, 1)
    extent = Extent(heads.keys, heads.heads)
    mask.check(heads.offset + heads.queries, extent)
    return mask.some(rows, columns, head, extent).expand(len(head), *heads.grid(unit))[None]


def _no_row_empty(mask: Tensor, allowed: Tensor) -> Tensor:
    """The last allowed unit of a row (the diagonal, where causal) is added where nothing was kept."""
    lonely = ~mask.any(-1) & allowed.any(-1)
    if not bool(lonely.any()):
        return mask
    last = allowed.shape[-1] - 1 - allowed.flip(-1).to(torch.uint8).argmax(-1)
    added = torch.zeros_like(mask).scatter(-1, last.view(1, 1, -1, 1).expand(*mask.shape[:3], 1), lonely.unsqueeze(-1))
    return mask | added
