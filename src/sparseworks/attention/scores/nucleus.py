"""Nucleus: of generous candidates the share of attention that each token is estimated to hold (Twilight)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.codes import decode, encode
from sparseworks.attention.heads import Heads, products
from sparseworks.attention.index import KeyIndex, indices_of
from sparseworks.attention.kept import Kept
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.grid import on_grid
from sparseworks.attention.scores.pages import PageBound
from sparseworks.core.pattern import Tile
from sparseworks.core.select import top


class KeyCodes(KeyIndex):
    """Keys in few bits, a scale and a zero point a token; and the index of the selector."""

    grows: ClassVar[tuple[str, ...]] = ("codes", "scale", "zero")

    def begin(self, heads: Heads) -> None:
        """The selector's own index, empty."""
        kind = type(self.score.base).INDEX
        if kind is not None:
            self.inner = kind(self.score.base)
            self.inner.begin(heads)

    def encoded(self, k: Float[Tensor, "kv_heads new d"]) -> dict[str, Tensor]:
        """Asymmetric codes."""
        return encode(k, self.score.bits)

    def product(self, q: Float[Tensor, "heads queries d"]) -> Float[Tensor, "heads queries tokens"]:
        """q . k_j with the decoded keys."""
        return products(q.float(), decode(self.parts, self.score.bits))


@ATTENTION_SCORES.register("nucleus")
@dataclass(frozen=True)
class Nucleus(AttentionScore):
    """softmax(scale q . k~_j) over the candidates of another score, k~ the keys in `bits` bits; 0 for the others.

    With a budget of mass p the fewest tokens that hold p are kept, more where attention is flat. (Lin et al. 2025, arXiv 2502.02770.)

    Attributes:
        base: chooses candidates.
        share: of all units of `page` tokens that are candidates, and at least `least` tokens.
        page: the unit of the base.
    """

    INDEX: ClassVar[type[KeyIndex] | None] = KeyCodes
    probability: ClassVar[bool] = True
    base: AttentionScore = field(default_factory=PageBound)
    share: float = 0.25
    least: int = 256
    page: int = 16
    bits: int = 4
    shared: str | None = "union"

    def everything(self) -> AttentionScore:
        """Every token a candidate."""
        return replace(self, share=1.0)

    def candidates(self, heads: Heads) -> Bool[Tensor, "batch heads queries keys"]:
        """What the base would keep."""
        unit, held = Tile(1, self.page), heads.memory.get("index")
        scores = self.base(heads.with_(memory={"index": held.inner} if held is not None and held.inner else {}), unit)
        scores = scores.masked_fill(~heads.allowed(unit).to(scores.device), -torch.inf)
        pages = max(round(self.share * scores.shape[-1]), -(-self.least // self.page))
        mask = top(scores, min(pages, scores.shape[-1])) & (scores > -torch.inf)
        return Kept(mask, unit).tokens(heads, slice(None))

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Estimated shares."""
        logits = torch.stack([i.product(heads.q[b]) for b, i in enumerate(indices_of(self, heads))]) * heads.factor
        shares = logits.masked_fill(~self.candidates(heads), -torch.inf).softmax(-1).nan_to_num(0.0)
        return on_grid(shares, heads, unit).clamp(min=0)
