"""CacheMethod: a published way to hold fewer keys and values, and the eviction that carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from sparseworks.attention.cache.form import KV_FORMS, KVForm
from sparseworks.attention.cache.held import KV_SCORES, MERGES, Held, KVScore, Merge
from sparseworks.attention.masks.base import Extent, Mask
from sparseworks.core.budget import Budget, Count, Density
from sparseworks.core.config import NOUNS
from sparseworks.core.errors import BudgetError, NonFiniteError, RecipeError
from sparseworks.core.pattern import ELEMENT, ROW, WHOLE, Pattern
from sparseworks.core.published import METHODS, Published, Source
from sparseworks.core.schedule import Constant, Schedule
from sparseworks.core.select import top

NOUNS |= {"kv_score": (KVScore, KV_SCORES), "merge": (Merge, MERGES), "kv_form": (KVForm, KV_FORMS)}

HEAD, LAYER = Pattern(ELEMENT, ROW), Pattern(ELEMENT, WHOLE)
"""Tokens compete within their head, or within all heads of their layer."""


@dataclass(frozen=True)
class CacheMethod(Published):
    """score x group x budget of KV tokens; what goes is freed.

    Attributes:
        score: of held tokens; None: only `always` says who stays.
        pattern: `HEAD` or `LAYER`, within which tokens compete.
        budget: a density of all tokens seen, or a count, per head on average; a mass of the scores.
        always: a mask of the current query's position: what it keeps stays in any case, within the budget.
        floor: with `LAYER`, the share of the even budget that every head keeps.
        depth: multiplies the budget by layer (progress 0 at the first, 1 at the last); a mean of 1 keeps the sum.
        every: during decoding it is looked at every so many tokens; between, the cache grows.
        merge: what becomes of tokens that go; None: they are dropped.
        form: how older tokens are stored; with one, none goes: it is told which the score keeps.
        phases: of "prefill" (also between turns) and "decode".
    """

    family: ClassVar[str] = "attention"
    kind: ClassVar[str] = "cache"
    used_by: ClassVar[str] = "with sw.attention(model, method): model.generate(...)"
    PARTS: ClassVar[Mapping[str, str]] = {
        "score": "kv_score",
        "pattern": "pattern",
        "budget": "budget",
        "always": "mask",
        "depth": "schedule",
        "merge": "merge",
        "form": "kv_form",
    }
    PLAIN: ClassVar[tuple[str, ...]] = ("floor", "every", "phases")

    score: KVScore | None = None
    pattern: Pattern = HEAD
    budget: Budget = field(default_factory=lambda: Density(0.5))
    always: Mask | None = None
    floor: float = 0.0
    depth: Schedule = field(default_factory=lambda: Constant(1.0))
    every: int = 1
    merge: Merge | None = None
    form: KVForm | None = None
    phases: tuple[str, ...] = ("prefill", "decode")

    def __post_init__(self):
        if self.score is None and self.always is None and self.form is None:
            raise RecipeError(f"Method {self.name!r} keeps nothing: give it a score or a mask that is always kept.")
        if self.every < 1 or not 0 <= self.floor <= 1:
            raise BudgetError(f"`every` is at least 1 and `floor` in [0, 1]; got {self.every} and {self.floor}.")

    @property
    def cache(self) -> str:
        """The kind of cache (of `KV_LAYERS`) that it wants."""
        return "ragged" if self.form is None else "formed"

    def acts(self, phase: str, new: int) -> bool:
        """Whether the cache is looked at after a call of `phase`, `new` tokens after it was last looked at."""
        wanted = "decode" if phase == "decode" else "prefill"
        return wanted in self.phases and (phase != "decode" or new >= self.every)


def kept_tokens(held: Held, method: CacheMethod) -> Bool[Tensor, "batch kv_heads held"]:
    """Tokens that stay: those that `always` keeps, and the best of every group up to the budget.

    Raises:
        NonFiniteError: NaN scores.
        BudgetError: a budget that means nothing here.
    """
    forced = _forced(held, method)
    if method.score is None:
        return held.valid if method.form is not None else forced
    scores = method.score(held).float()
    if bool(scores[held.valid].isnan().any()):
        raise NonFiniteError(f"{method.name}: the scores of layer {held.layer} hold NaN.")
    scores = scores.masked_fill(~held.valid, -torch.inf)
    even = _even(held, method, scores)
    if method.pattern.group.rows is not None:
        counts = torch.maximum(even, forced.sum(-1)).minimum(held.valid.sum(-1))
        return top(scores.masked_fill(forced, torch.inf), counts)
    least = torch.maximum((even * method.floor).long(), forced.sum(-1)).minimum(held.valid.sum(-1))
    base = top(scores.masked_fill(forced, torch.inf), least) if bool(least.any()) else torch.zeros_like(forced)
    total = torch.maximum(even.sum(-1), least.sum(-1)).minimum(held.valid.sum((-2, -1)))
    flat = scores.masked_fill(base, torch.inf).flatten(1)
    return top(flat, total).view_as(scores)


def _even(held: Held, method: CacheMethod, scores: Tensor) -> Tensor:
    """Tokens of each head if all keep equally many."""
    seen = held.seen[:, None].expand(scores.shape[:2])
    share = method.depth(held.layer / max(held.layers - 1, 1))
    if isinstance(method.budget, Count):
        return torch.full_like(seen, max(1, round(method.budget.value * share)))
    if isinstance(method.budget, Density):
        return (seen * (method.budget.value * share)).ceil().long().clamp(min=1)
    if method.budget.needs_scores:
        return method.budget.counts(scores.masked_fill(~held.valid, 0.0)).clamp(min=1)
    raise BudgetError(
        f"A cache takes a density, a count of tokens, or a budget that looks at scores; not {method.budget}."
    )


def _forced(held: Held, method: CacheMethod) -> Tensor:
    if method.always is None:
        return torch.zeros_like(held.valid)
    extent = Extent(int(held.now.max()) + 1, held.k.shape[1])
    head = torch.arange(held.k.shape[1], device=held.k.device).view(1, -1, 1)
    return method.always.keeps(held.now.view(-1, 1, 1), held.positions.long(), head, extent) & held.valid


def add_cache(name: str, score: KVScore | None, source: Source, claims: str, **parts: Any) -> CacheMethod:
    """Register the composition of `parts` under `name`; fields as in `CacheMethod`."""
    method = CacheMethod(name, score, source=source, claims=claims, **parts)
    METHODS.register(name)(method)
    return method
