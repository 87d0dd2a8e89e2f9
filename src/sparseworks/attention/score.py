"""AttentionScore: how much a unit of the attention map matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.core.pattern import Tile
from sparseworks.core.registry import Registry

if TYPE_CHECKING:
    from sparseworks.attention.index import KeyIndex
    from sparseworks.attention.kept import Kept
    from sparseworks.attention.listed import Listed
    from sparseworks.attention.method import AttentionMethod

ATTENTION_SCORES: Registry[type[AttentionScore]] = Registry("attention score", "sparseworks.attention")


class AttentionScore:
    """Importance of every unit; register a frozen dataclass and name it in a method.

    -inf says: never (a coarser search has thrown it out); inf says: always. Units of the future are masked by the caller.

    Attributes:
        probability: whether scores of a row are shares that sum to about 1, so that a mass budget can be taken of them as they
            are. Otherwise a softmax over the row is taken first.
        shared: how query heads that share keys come to one choice: "sum", "max", "mean" of their scores, "union" of what each
            keeps, or None where every head keeps its own.
        INDEX: what it keeps beside the keys of a sequence while decoding, if anything.
    """

    registered_name: ClassVar[str] = ""
    probability: ClassVar[bool] = False
    INDEX: ClassVar[type[KeyIndex] | None] = None
    shared: str | None = None

    def cache(self, method: AttentionMethod) -> str:
        """The kind of cache (of `KV_LAYERS`) behind which `method`, which scores by this, decodes; "" where any will do."""
        return "" if self.INDEX is None else "indexed"

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Scores on the grid of `unit`; heads may be 1 where all share them."""
        raise NotImplementedError

    def row(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch lists columns"]:
        """Scores of the only query, those of heads that share keys already reduced: a row for every head, every key head, or all.

        In memory of its own, for the caller marks what is kept in any case.
        """
        found = self(heads, unit)
        if self.shared not in (None, "union") and heads.group > 1 and found.shape[1] == heads.heads:
            return heads.grouped(found, self.shared)[:, :, 0]  # type: ignore[arg-type]
        return found[:, :, 0].clone()

    def listed(self, heads: Heads, method: AttentionMethod) -> Listed | None:
        """What `method` keeps for the only query, where the score finds it faster than by a score of every unit; None: it does not."""
        return None

    def dense(self, heads: Heads) -> Bool[Tensor, "batch heads"] | None:
        """Heads that this score cannot judge and that are computed whole (a guard); None: it judges all."""
        return None

    def attending(self, heads: Heads, kept: Kept) -> Bool[Tensor, "batch heads queries"] | None:
        """Queries that attend at all, once units are chosen: the others give zeros and pass by; None: all."""
        return None

    def beam(
        self, heads: Heads, unit: Tile
    ) -> tuple[Int[Tensor, "batch heads rows count"], Float[Tensor, "batch heads rows count"]] | None:
        """The columns at which a search of each row ends, ascending, and their scores: all others are -inf; None: nothing is searched for.

        A column beyond the last is none. What is chosen is the same as from the whole grid, which need not be made for it.
        """
        return None

    def everything(self) -> AttentionScore:
        """The same score without a search that throws units out by -inf, so that a full budget is the whole map."""
        return self

    def bias(self, heads: Heads) -> Float[Tensor, "batch kv_heads keys"] | None:
        """What is added to the logits of each key, for scores that were trained that way; None: nothing."""
        return None

    def learn(self, heads: Heads, **seen: Any) -> None:
        """What a call's own result teaches the score, kept in `heads.memory` (the log-sum-exp, a residual, a list)."""
