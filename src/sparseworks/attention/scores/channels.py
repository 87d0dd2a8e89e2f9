"""Channel product: a few channels of the keys tell which tokens matter (S4, Double Sparsity)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.attention.codes import decode, encode
from sparseworks.attention.heads import Heads
from sparseworks.attention.index import KeyIndex, indices_of
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.grid import on_grid
from sparseworks.core.pattern import Tile


class LabelCache(KeyIndex):
    """Parts: `channels` (kv_heads, r) and, for every token, its key there: `labels` (kv_heads, tokens, r), or their `codes`."""

    grows: ClassVar[tuple[str, ...]] = ("labels", "codes", "scale", "zero")
    columns: ClassVar[tuple[str, ...]] = ("labels",)

    def begin(self, heads: Heads) -> None:
        """The channels of the calibration, or of the prompt."""
        table = self.score.table
        found = channel_weights(heads)[0].topk(self.score.channels(heads.d), -1).indices
        self.parts["channels"] = (found if table is None else torch.tensor(table[heads.layer])).to(torch.int16)

    def encoded(self, k: Float[Tensor, "kv_heads new d"]) -> dict[str, Tensor]:
        """Keys in these channels."""
        at = self.parts["channels"].long().unsqueeze(1).expand(-1, k.shape[1], -1)
        labels = k.detach().gather(2, at.to(k.device))
        return {"labels": labels} if not self.score.bits else encode(labels, self.score.bits)

    def crop(self, tokens: int, k: Float[Tensor, "kv_heads tokens d"]) -> None:
        """Keep the first `tokens`."""
        for name in set(self.grows) & set(self.parts):
            self.parts[name] = self.parts[name][:, :tokens].clone()

    def product(self, q: Float[Tensor, "heads queries d"]) -> Float[Tensor, "heads queries tokens"]:
        """sum over the channels of q_c k_jc."""
        labels = self.parts["labels"].float() if not self.score.bits else decode(self.parts, self.score.bits)
        rows = q.float().unflatten(0, (len(labels), -1)).flatten(1, 2)  # those of a group read the labels together
        at = self.parts["channels"].long().unsqueeze(1).expand(-1, rows.shape[1], -1)
        found = rows.gather(2, at.to(q.device)) @ labels.mT
        return found.view(*q.shape[:2], -1)


@ATTENTION_SCORES.register("channels")
@dataclass(frozen=True)
class ChannelProduct(AttentionScore):
    """scale sum over a few channels c of q_c k_jc, the channels of the largest mean |q_c k_c| (Yang et al. 2024, arXiv 2408.07092).

    Attributes:
        share: of the channels, at least one.
        bits: of the labels: 0 as the keys are, or 2, 4, 8.
        table: per layer and key head the channels that `calibrate_channels` found; None: they are taken from the prompt.
    """

    INDEX: ClassVar[type[KeyIndex] | None] = LabelCache
    share: float = 1 / 16
    bits: int = 0
    table: tuple | None = None
    shared: str | None = "mean"

    def channels(self, d: int) -> int:
        """How many of d; whole bytes where they are coded."""
        some = max(1, round(self.share * d))
        return some + -some % (8 // self.bits) if self.bits else some

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Approximate logits."""
        parts = [i.product(heads.q[b]) for b, i in enumerate(indices_of(self, heads))]
        return on_grid(torch.stack(parts) * heads.factor, heads, unit)

    def row(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch lists columns"]:
        """The mean of a group's scores is the score of its mean query: one product a key head."""
        if self.shared != "mean" or unit.cols != 1:
            return super().row(heads, unit)
        q = heads.grouped(heads.q.detach().float(), "mean") * heads.factor
        parts = [i.product(q[b])[None] for b, i in enumerate(indices_of(self, heads))]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[:, :, 0]


def channel_weights(heads: Heads) -> Float[Tensor, "batch kv_heads d"]:
    """Mean over positions of |q_c k_c| of the query and the key of the same position, summed over the group of a key head.

    Where queries are fewer than keys, their own positions are the last; a single query is held against the mean |k_c|.
    """
    q = heads.grouped(heads.q.detach().float().abs(), "sum")
    k = heads.k.detach().float().abs()
    if heads.queries == 1:
        return q[:, :, 0] * k.mean(2)
    return (q * k[:, :, -heads.queries :]).mean(2)


def calibrated(weights: list[Float[Tensor, "kv_heads d"]], share: float = 1 / 16) -> ChannelProduct:
    """The score whose channels are the heaviest of every layer's weights, as `channel_weights` over calibration text gives them."""
    table = tuple(
        tuple(map(tuple, _best(w, max(1, round(share * w.shape[-1]))).tolist())) for w in weights
    )  # fmt: skip
    return ChannelProduct(share, table=table)


def _best(w: Float[Tensor, "kv_heads d"], count: int) -> Int[Tensor, "kv_heads count"]:
    return w.topk(count, -1).indices
