"""AttentionScore: how much a unit of the attention map matters."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.core.pattern import Tile
from sparseworks.core.registry import Registry

ATTENTION_SCORES: Registry[type[AttentionScore]] = Registry("attention score", "sparseworks.attention")


class AttentionScore:
    """Importance of every unit; register a frozen dataclass and name it in a method.

    -inf says: never (a coarser search has thrown it out); inf says: always. Units of the future are masked by the caller.

    Attributes:
        probability: whether scores of a row are shares that sum to about 1, so that a mass budget can be taken of them as they
            are. Otherwise a softmax over the row is taken first.
        shared: how scores of query heads that share keys become one: "sum", "max", "mean", or None where every head keeps its own.
    """

    registered_name: ClassVar[str] = ""
    probability: ClassVar[bool] = False
    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Scores on the grid of `unit`; heads may be 1 where all share them."""
        raise NotImplementedError

    def dense(self, heads: Heads) -> Bool[Tensor, "batch heads"] | None:
        """Heads that this score cannot judge and that are computed whole (a guard); None: it judges all."""
        return None

    def bias(self, heads: Heads) -> Float[Tensor, "batch kv_heads keys"] | None:
        """What is added to the logits of each key, for scores that were trained that way; None: nothing."""
        return None

    def learn(self, heads: Heads, **seen: Any) -> None:
        """What a call's own result teaches the score, kept in `heads.memory` (the log-sum-exp, a residual, a list)."""
