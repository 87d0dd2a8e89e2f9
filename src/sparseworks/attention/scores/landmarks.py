"""Landmarks: means of short chunks, and the chunks that their mean does not stand for kept exact (S1, ShadowKV)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.choosing import units_of
from sparseworks.attention.heads import Heads, pooled
from sparseworks.attention.index import KeyIndex, indices_of
from sparseworks.attention.listed import Listed
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.grid import on_grid
from sparseworks.core.budget import Count, Density
from sparseworks.core.pattern import Tile
from sparseworks.exec.attention import best

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

    def exact(self) -> Int[Tensor, "kv_heads exact"]:
        """Tokens of outlier chunks, ascending."""
        outlier, chunk = self.parts["outlier"], self.score.chunk
        at = outlier.nonzero()[:, 1].view(len(outlier), -1, 1)
        return (at * chunk + torch.arange(chunk, device=at.device)).flatten(1)

    def shares(self, q: Float[Tensor, "heads queries d"], factor: float) -> Float[Tensor, "heads queries chunks"]:
        """softmax over chunks of scale q . mean."""
        means = self.parts["means"]
        rows = (
            q.detach().float().unflatten(0, (len(means), -1)).flatten(1, 2)
        )  # those of a group read the means together
        return (rows @ means.mT * factor).softmax(-1).view(*q.shape[:2], -1)

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
                out = index.parts["outlier"].repeat_interleave(heads.group, 0).unsqueeze(1)
                one = index.shares(heads.q[b], heads.factor).masked_fill(out, torch.inf)
                one = one.repeat_interleave(self.chunk, -1)
                shares[..., : one.shape[-1]] = one[..., : heads.keys]
            found.append(shares)
        return on_grid(torch.stack(found), heads, unit)

    def listed(self, heads: Heads, method: AttentionMethod) -> Listed | None:
        """Whole chunks, the last in part, and behind them outliers and later tokens."""
        index = indices_of(self, heads)[0] if heads.batch == 1 else None
        found = None if index is None else self.chosen(heads, method, index)
        if index is None or found is None:
            return None
        at = tokens_of(*found, self.chunk)
        late = torch.arange(index.parts["means"].shape[1] * self.chunk, heads.keys).expand(heads.kv_heads, -1)
        rows = torch.cat([at, index.exact(), late], 1).int()
        return Listed(heads, method.pattern.unit, torch.arange(len(rows) + 1).int() * rows.shape[1], rows.flatten())

    def chosen(
        self, heads: Heads, method: AttentionMethod, index: ChunkMeans
    ) -> tuple[Int[Tensor, "kv_heads chunks"], int] | None:
        """The best chunks that the only query of one sequence reads beside outliers and later tokens, the weakest last, and how many
        tokens of them; None: not said so."""
        unit, parts = method.pattern.unit, index.parts
        plain = self.shared in ("sum", "max", "mean") and method.always is None and not method.pattern.across
        plain = plain and (unit.rows, unit.cols) == (1, 1) and isinstance(method.budget, Density | Count)
        if "means" not in parts or not plain:
            return None
        kv_heads, chunks = parts["outlier"].shape
        must = int(parts["outlier"][0].sum()) * self.chunk + heads.keys - chunks * self.chunk
        wanted = int(units_of(method.budget, torch.tensor(heads.keys), torch.tensor(1), unit))
        room = max(0, min(wanted, heads.keys) - must)
        if not room:
            return torch.empty(kv_heads, 0, dtype=torch.long), 0
        shares = index.shares(heads.q[0], heads.factor)[None]
        shares = heads.grouped(shares, self.shared)[0, :, 0]  # type: ignore[arg-type]
        shares = shares.masked_fill(parts["outlier"], -torch.inf)
        _, at = best(shares, torch.full((kv_heads,), -(-room // self.chunk)))
        at = at.view(kv_heads, -1).long().to(shares.device)
        return weakest_last(at, shares.gather(1, at)), room


def tokens_of(chunks: Int[Tensor, "kv_heads chunks"], tokens: int, chunk: int) -> Int[Tensor, "kv_heads tokens"]:
    """The first so many tokens of chunks of that size."""
    return (chunks.unsqueeze(-1) * chunk + torch.arange(chunk, device=chunks.device)).flatten(1)[:, :tokens]


def weakest_last(at: Int[Tensor, "rows some"], score: Float[Tensor, "rows some"]) -> Int[Tensor, "rows some"]:
    """Places with that of the smallest score, the last of those that tie, in the last place."""
    order = torch.arange(1, at.shape[1] + 1, device=at.device)
    low = ((score == score.amin(1, keepdim=True)) * order).argmax(1, keepdim=True)
    swapped = at.scatter(1, low, at[:, -1:].clone())
    swapped[:, -1:] = at.gather(1, low)
    return swapped


def outliers(k: Float[Tensor, "kv_heads tokens d"], chunk: int, count: int) -> Bool[Tensor, "kv_heads chunks"]:
    """The chunks of the smallest min over their keys of cos(k, mean of the chunk)."""
    chunks = k.unflatten(1, (-1, chunk))
    alike = F.cosine_similarity(chunks, chunks.mean(2, keepdim=True), -1).amin(-1)
    mask = torch.zeros_like(alike, dtype=torch.bool)
    return mask.scatter_(1, alike.argsort(1)[:, :count], True)
