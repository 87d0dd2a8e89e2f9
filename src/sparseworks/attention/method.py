"""AttentionMethod: a published way to attend to part of the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sparseworks.attention.masks.base import Mask
from sparseworks.attention.order import ORDERS, Order
from sparseworks.attention.rest import RESTS, Rest
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.timing import TIMINGS, Always, Timing
from sparseworks.core.budget import Budget, Density
from sparseworks.core.config import NOUNS
from sparseworks.core.errors import RecipeError
from sparseworks.core.pattern import ELEMENT, ROW, WHOLE, Pattern, Tile
from sparseworks.core.published import METHODS, Published, Source

NOUNS |= {
    "attention_score": (AttentionScore, ATTENTION_SCORES),
    "rest": (Rest, RESTS),
    "order": (Order, ORDERS),
    "timing": (Timing, TIMINGS),
}
PHASES = ("prefill", "decode")


def blocks(queries: int = 64, keys: int | None = None, *, group: Tile = ROW, across: bool = False) -> Pattern:
    """Blocks of queries x keys; those of a row of blocks compete, or with `group=WHOLE` those of a head, `across` those of a layer."""
    return Pattern(unit=Tile(queries, queries if keys is None else keys), group=group, across=across)


def stripes(queries: int = 128) -> Pattern:
    """Single keys for a block of queries."""
    return Pattern(unit=Tile(queries, 1), group=ROW)


def pages(keys: int = 16) -> Pattern:
    """Pages of keys for every query."""
    return Pattern(unit=Tile(1, keys), group=ROW)


def clusters() -> Pattern:
    """Whole clusters of an order that makes some, of whatever size they are; those of a head compete."""
    return Pattern(unit=WHOLE, group=WHOLE)


@dataclass(frozen=True)
class AttentionMethod(Published):
    """score x pattern x budget, what is kept in any case, what stands in for the rest, and when.

    Attributes:
        score: of the units of the pattern; None: `always` says all.
        pattern: the unit (`blocks(64)`, `stripes(128)`, `pages(16)`), and the set within which units compete.
        budget: a density of the allowed units, a count of keys per query, a mass, a threshold.
        always: a mask whose units are kept in any case (sink, window, last rows).
        rest: what stands in for units that are not kept; None: they are left out of the softmax.
        order: tokens put into another order before units are cut.
        schedule: layers, steps and lengths at which it acts, and how often it selects anew.
        phases: "prefill", "decode" or both; the other stays dense.
    """

    family: ClassVar[str] = "attention"
    kind: ClassVar[str] = "attention"
    used_by: ClassVar[str] = "with sw.attention(model, method): ..."
    PARTS: ClassVar[Mapping[str, str]] = {
        "score": "attention_score",
        "pattern": "pattern",
        "budget": "budget",
        "always": "mask",
        "rest": "rest",
        "order": "order",
        "schedule": "timing",
    }
    PLAIN: ClassVar[tuple[str, ...]] = ("phases",)

    score: AttentionScore | None = None
    pattern: Pattern = field(default_factory=blocks)
    budget: Budget = field(default_factory=lambda: Density(0.25))
    always: Mask | None = None
    rest: Rest | None = None
    order: Order | None = None
    schedule: Timing = field(default_factory=Always)
    phases: tuple[str, ...] = ("prefill",)

    def __post_init__(self):
        if not self.phases or set(self.phases) - set(PHASES):
            raise RecipeError(f"Phases are {' and '.join(PHASES)}, got {self.phases!r}.")
        if self.score is None and self.always is None:
            raise RecipeError(f"Method {self.name!r} keeps nothing: give it a score or a mask that is always kept.")

    @property
    def cache(self) -> str:
        """The kind of cache behind which it decodes, "" where any will do."""
        return "" if self.score is None or "decode" not in self.phases else self.score.cache(self)


def add(name: str, score: AttentionScore | None, source: Source, claims: str, **parts: Any) -> AttentionMethod:
    """Register the composition of `parts` under `name`; fields as in `AttentionMethod`."""
    method = AttentionMethod(name, score, source=source, claims=claims, **parts)
    METHODS.register(name)(method)
    return method


__all__ = ["ELEMENT", "ROW", "WHOLE", "AttentionMethod", "add", "blocks", "clusters", "pages", "stripes"]
