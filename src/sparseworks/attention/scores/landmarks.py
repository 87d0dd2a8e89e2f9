"""Landmarks: means of short chunks, and the chunks that their mean does not stand for kept exact (S1, ShadowKV)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.heads import Heads, pooled
from sparseworks.attention.index import KeyIndex, indices_of
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.grid import on_grid
from sparseworks.core.pattern import Tile

if TYPE_CHECKING:
    from sparseworks.attention.method import AttentionMethod


class ChunkMeans(KeyIndex):
    """Parts: `means` (kv_heads, chunks, d) over the chunks of the prompt, `outlier` (kv_heads, chunks)."""

    def begin(self, heads: Heads) -> None:
        """Means of whole chunks before the local ones, and which of them are outliers."""
        chunk, n = self.score.chunk, self.score.covered(heads.keys)
        if n:
            k = heads.k[0].detach().float()[:, :n]
            self.parts["means"] = pooled(k, [(a, a + chunk) for a in range(0, n, chunk)])
            self.parts["outlier"] = outliers(k, chunk, self.score.outliers)

    def encoded(self, k: Float[Tensor, "kv_heads new d"]) -> dict[str, Tensor]:
        """Nothing: tokens after the prompt are local."""
        return {}

    def crop(self, tokens: int, k: Float[Tensor, "kv_heads tokens d"]) -> None:
        """Whole chunks that are left."""
        for name in self.parts:
            self.parts[name] = self.parts[name][:, : tokens // self.score.chunk].clone()


@ATTENTION_SCORES.register("landmarks")
@dataclass(frozen=True)
class Landmarks(AttentionScore):
    """softmax over chunks c of scale q . mean(k_c), the largest of a group of heads; outlier chunks and later tokens always.

    Outliers are the chunks whose least cosine between a key and their mean is smallest. (Sun et al. 2024, arXiv 2410.21465.)

    Attributes:
        chunk: keys of a landmark.
        outliers: chunks kept exact in every head.
        local: last chunks of the prompt that are always read.
        rank: of the keys before rotary embedding, where a cache of kind `shadow` stores them so.
    """

    INDEX: ClassVar[type[KeyIndex] | None] = ChunkMeans
    chunk: int = 8
    outliers: int = 48
    local: int = 4
    rank: int = 160
    shared: str | None = "max"

    def cache(self, method: AttentionMethod) -> str:
        """Low-rank keys on the device, values elsewhere."""
        return "shadow"

    def covered(self, tokens: int) -> int:
        """Tokens of a prompt that lie in chunks with a landmark."""
        return max(0, tokens // self.chunk - self.local) * self.chunk

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Shares of landmarks at their keys."""
        found = []
        for b, index in enumerate(indices_of(self, heads)):
            shares = heads.q.new_full((heads.heads, heads.queries, heads.keys), torch.inf, dtype=torch.float32)
            if "means" in index.parts:
                logits = heads.q[b].detach().float() @ index.parts["means"].repeat_interleave(heads.group, 0).mT
                out = index.parts["outlier"].repeat_interleave(heads.group, 0).unsqueeze(1)
                one = (logits * heads.factor).softmax(-1).masked_fill(out, torch.inf).repeat_interleave(self.chunk, -1)
                shares[..., : one.shape[-1]] = one[..., : heads.keys]
            found.append(shares)
        return on_grid(torch.stack(found), heads, unit)


def outliers(k: Float[Tensor, "kv_heads tokens d"], chunk: int, count: int) -> Bool[Tensor, "kv_heads chunks"]:
    """The chunks of the smallest min over their keys of cos(k, mean of the chunk)."""
    chunks = k.unflatten(1, (-1, chunk))
    alike = F.cosine_similarity(chunks, chunks.mean(2, keepdim=True), -1).amin(-1)
    mask = torch.zeros_like(alike, dtype=torch.bool)
    return mask.scatter_(1, alike.argsort(1)[:, :count], True)
