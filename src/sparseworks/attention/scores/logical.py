"""Logical pages: a page that is read whole is bounded by smaller ones inside it (LServe); and heads that only stream."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.heads import Heads, pooled
from sparseworks.attention.index import KeyIndex, indices_of
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.pages import PageBound, upper
from sparseworks.core.pattern import Tile

_SIDES: tuple[tuple[str, Literal["max", "min"]], ...] = ("most", "max"), ("least", "min")


class PageLimits(KeyIndex):
    """Parts: `most` and `least` (kv_heads, pages, d), the extremes of the keys of every logical page, and how many `tokens` they cover.

    New keys change the last page only.
    """

    def extend(self, k: Float[Tensor, "kv_heads new d"]) -> None:
        """The last page is filled, then pages are added."""
        size, k = self.score.logical, k.detach()
        held = int(self.parts["tokens"]) if self.parts else 0
        joins = k[:, : min(-held % size, k.shape[1])]
        pages = _cut(k.shape[1] - joins.shape[1], size)
        for name, how in _SIDES:
            new, old = pooled(k[:, joins.shape[1] :], pages, how), self.parts.get(name, k[:, :0].clone())
            if joins.shape[1]:
                both = torch.cat([old[:, -1:], joins], 1)
                old[:, -1] = both.amax(1) if how == "max" else both.amin(1)
            self.parts[name] = torch.cat([old, new], 1) if pages else old
        self.parts["tokens"] = torch.tensor(held + k.shape[1])

    def crop(self, tokens: int, k: Float[Tensor, "kv_heads tokens d"]) -> None:
        """The pages that are left, the last one anew where it lost tokens."""
        size = self.score.logical
        whole = tokens // size
        for name, how in _SIDES:
            last = pooled(k[:, whole * size :], _cut(tokens - whole * size, size), how)
            self.parts[name] = torch.cat([self.parts[name][:, :whole], last], 1)
        self.parts["tokens"] = torch.tensor(tokens)


def _cut(tokens: int, size: int) -> list[tuple[int, int]]:
    return [(a, min(a + size, tokens)) for a in range(0, tokens, size)]


class Gates(KeyIndex):
    """Part `streams` (kv_heads): which key heads only stream."""

    def begin(self, heads: Heads) -> None:
        """From the table of the calibration, or the prompt's last queries."""
        table = self.score.gates
        gate = (
            reach(heads, self.score.sink, self.score.window)[0] if table is None else torch.tensor(table[heads.layer])
        )
        least = gate.argsort()[: round(self.score.share * len(gate))]
        self.parts["streams"] = torch.zeros(len(gate), dtype=torch.bool).index_fill(0, least.cpu(), True)
        kind = type(self.score.base).INDEX
        if kind is not None:
            self.inner = kind(self.score.base)
            self.inner.begin(heads)

    def encoded(self, k: Float[Tensor, "kv_heads new d"]) -> dict[str, Tensor]:
        """Nothing more."""
        return {}


@ATTENTION_SCORES.register("logical_pages")
@dataclass(frozen=True)
class LogicalPages(AttentionScore):
    """max over the logical pages of `logical` keys inside a page of their bounds (Yang et al. 2025, arXiv 2502.14866)."""

    INDEX: ClassVar[type[KeyIndex] | None] = PageLimits
    logical: int = 16
    shared: str | None = "max"

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Bounds of pages, from the extremes that a cache holds where there is one; a page is a whole number of logical pages."""
        cols, held = unit.cols or heads.keys, heads.memory.get("index")
        if held is not None and self.logical <= cols:
            small = upper(heads, unit, *(held.parts[name].unsqueeze(0) for name in ("most", "least")))
        else:
            small = PageBound()(heads, Tile(unit.rows, min(self.logical, cols)))
        per = -(-cols // min(self.logical, cols))
        short = -small.shape[-1] % per
        padded = torch.nn.functional.pad(small, (0, short), value=-torch.inf)
        return padded.unflatten(-1, (-1, per)).amax(-1)


@ATTENTION_SCORES.register("streaming_heads")
@dataclass(frozen=True)
class StreamingHeads(AttentionScore):
    """-inf for key heads that only stream (what `always` names is all they see), the score `base` for the others.

    A head streams if little of its attention goes beyond sink and window: the `share` of key heads with the smallest gates do.

    Attributes:
        gates: per layer the gates of its key heads, from a calibration; None: `reach` of the prompt.
    """

    INDEX: ClassVar[type[KeyIndex] | None] = Gates
    base: AttentionScore = field(default_factory=LogicalPages)
    share: float = 0.5
    sink: int = 128
    window: int = 256
    gates: tuple | None = None
    shared: str | None = "max"

    def everything(self) -> AttentionScore:
        """No head streams."""
        return replace(self, share=0.0, base=self.base.everything())

    def streams(self, heads: Heads) -> Bool[Tensor, "batch kv_heads"]:
        """Heads that stream."""
        return torch.stack([i.parts["streams"] for i in indices_of(self, heads)]).to(heads.q.device)

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """The base's scores, masked."""
        held = heads.memory.get("index")
        inner = {"index": held.inner} if held is not None and held.inner is not None else {}
        found = self.base(heads.with_(memory=inner), unit)
        return found.masked_fill(heads.shared(self.streams(heads))[..., None, None], -torch.inf)


def reach(
    heads: Heads, sink: int = 128, window: int = 256, last: int = 64
) -> Float[Tensor, "batch kv_heads"]:  # fmt: skip
    """Mean attention of the last queries that goes beyond the first `sink` and the nearest `window` keys: the gate of a head.

    A measured stand-in for the gates that DuoAttention trains (Xiao et al. 2024, arXiv 2410.10819).
    """
    rows = slice(max(0, heads.queries - last), heads.queries)
    shares = heads.scores(rows).softmax(-1)
    at = torch.arange(heads.offset, heads.offset + heads.queries, device=shares.device)[rows]
    key = torch.arange(heads.keys, device=shares.device)
    far = (key >= sink) & (key <= at[:, None] - window)
    return heads.grouped((shares * far).sum(-1).mean(-1), "mean")
