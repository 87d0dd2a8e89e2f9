"""Centroid score: the keys of a fixed context lie in clusters, and a query looks at their centres first (S5, Squeezed Attention)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.heads import Heads
from sparseworks.attention.index import KeyIndex, indices_of
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.grid import on_grid
from sparseworks.core.pattern import Tile
from sparseworks.solve.clusters import kmeans, summed


class KeyClusters(KeyIndex):
    """`label` of the clustered keys, `centres` (mean of raw keys) and `count` of every cluster; and those of coarse clusters over them.

    Parts: label (kv_heads, clustered), centres (kv_heads, clusters, d), count (kv_heads, clusters); with two levels also
    `coarse_label` (kv_heads, clusters), `coarse` and `coarse_count`. Later tokens belong to none.
    """

    def begin(self, heads: Heads) -> None:
        """k-means of the directions of all keys but the last."""
        k = heads.k[0].detach().float()
        n = max(0, heads.keys - self.score.recent)
        if not n:
            return
        self.parts |= named("", *clustered(k[:, :n], max(1, round(self.score.share * n))))
        self.parts["label"] = self.parts["label"].to(torch.int16 if n < 1 << 15 else torch.int32)
        if self.score.coarse:
            centres, count = self.parts["centres"], self.parts["count"]
            label, _, _ = clustered(centres, max(1, round(self.score.coarse * n)))
            coarse, total = means(centres, label, self.coarse_count(n), count)
            self.parts |= {"coarse_label": label.to(torch.int16), "coarse": coarse, "coarse_count": total}

    def coarse_count(self, n: int) -> int:
        """Coarse clusters of so many keys."""
        return min(max(1, round(self.score.coarse * n)), self.parts["centres"].shape[1])

    def encoded(self, k: Float[Tensor, "kv_heads new d"]) -> dict[str, Tensor]:
        """Nothing: later tokens are always looked at."""
        return {}

    def crop(self, tokens: int, k: Float[Tensor, "kv_heads tokens d"]) -> None:
        """Labels of tokens that went go; centres stay as they were made."""
        if "label" in self.parts:
            self.parts["label"] = self.parts["label"][:, :tokens].clone()

    def shares(self, q: Float[Tensor, "heads queries d"], factor: float) -> Float[Tensor, "heads queries clustered"]:
        """S_c = e^(q . k_c) / sum_c' N_c' e^(q . k_c') of the cluster of every key; with two levels -inf where the coarse one is cut."""
        group = q.shape[0] // len(self.parts["label"])
        wide = lambda name: self.parts[name].repeat_interleave(group, 0)  # noqa: E731
        found = share(q, wide("centres"), wide("count"), factor)
        if self.score.coarse:
            cut = share(q, wide("coarse"), wide("coarse_count"), factor)
            above = (
                _at(cut, wide("coarse_label").long())
                >= self.score.cut / wide("count").sum(-1).clamp(min=1)[:, None, None]
            )
            found = found.masked_fill(~above, -torch.inf)
        return _at(found, wide("label").long())


@ATTENTION_SCORES.register("centroids")
@dataclass(frozen=True)
class Centroids(AttentionScore):
    """S_c = e^(s q . k_c) / sum_c' N_c' e^(s q . k_c') for the cluster c of a key: the attention of one of its tokens, if all were its centre.

    (Hooper et al. 2024, arXiv 2411.09688.) Keys are clustered by direction, once, over the prompt; later tokens are always read.

    Attributes:
        share: clusters over keys.
        recent: last tokens of the prompt that belong to no cluster.
        coarse: clusters of the upper level over keys; 0: one level.
        cut: an upper cluster is looked into if its S is at least cut / n, n the clustered keys.
    """

    INDEX: ClassVar[type[KeyIndex] | None] = KeyClusters
    share: float = 0.05
    recent: int = 100
    coarse: float = 0.0
    cut: float = 1.0
    shared: str | None = None

    def everything(self) -> AttentionScore:
        """No upper level."""
        return replace(self, coarse=0.0)

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Shares of clusters at their keys, inf for keys of none."""
        found = []
        for b, index in enumerate(indices_of(self, heads)):
            if "label" not in index.parts:
                found.append(heads.q.new_full((heads.heads, heads.queries, heads.keys), torch.inf, dtype=torch.float32))
                continue
            shares = index.shares(heads.q[b].detach().float(), heads.factor)
            found.append(F.pad(shares, (0, heads.keys - shares.shape[-1]), value=torch.inf))
        return on_grid(torch.stack(found), heads, unit)


def clustered(
    k: Float[Tensor, "kv_heads tokens d"], clusters: int
) -> tuple[Tensor, Float[Tensor, "kv_heads clusters d"], Float[Tensor, "kv_heads clusters"]]:  # fmt: skip
    """Labels by direction, means of the keys as they are, and sizes."""
    label, centres = kmeans(F.normalize(k, dim=-1), clusters)
    return label, *means(k, label, centres.shape[-2])


def means(
    x: Float[Tensor, "kv_heads tokens d"], label: Tensor, clusters: int, weight: Float[Tensor, "kv_heads tokens"] | None = None
) -> tuple[Float[Tensor, "kv_heads clusters d"], Float[Tensor, "kv_heads clusters"]]:  # fmt: skip
    """Weighted mean and total weight of every cluster; an empty one has mean 0."""
    weight = torch.ones_like(x[..., 0]) if weight is None else weight
    weight = weight.unsqueeze(-1)
    total = summed(weight, label, clusters)
    return summed(x * weight, label, clusters) / total.clamp(min=1e-30), total.squeeze(-1)


def named(prefix: str, label: Tensor, centres: Tensor, count: Tensor) -> dict[str, Tensor]:
    """As parts."""
    return {prefix + "label": label, prefix + "centres": centres, prefix + "count": count}


def share(q: Tensor, centres: Tensor, count: Tensor, factor: float) -> Float[Tensor, "heads queries clusters"]:
    """e^(q . c) / sum N e^(q . c); empty clusters have none."""
    logits = q @ centres.mT * factor
    logits = logits.masked_fill((count == 0).unsqueeze(1), -torch.inf)
    return (logits - (logits + count.clamp(min=1e-30).log().unsqueeze(1)).logsumexp(-1, keepdim=True)).exp()


def _at(x: Float[Tensor, "heads queries clusters"], label: Tensor) -> Tensor:
    return x.gather(-1, label.unsqueeze(1).expand(-1, x.shape[1], -1))


def global_threshold(scores: list[Float[Tensor, "*some"]], quantile: float) -> float:
    """T: the quantile of finite scores over all tokens, heads and layers, for a budget `Threshold(T)`."""
    flat = torch.cat([s[s.isfinite()].flatten().float() for s in scores]).sort().values
    return float(flat[min(int(quantile * len(flat)), len(flat) - 1)])
