"""Same cluster: pairs that k-means of the keys puts together, clusters of equal size (Routing Transformer)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.pattern import Tile
from sparseworks.solve.clusters import kmeans


@ATTENTION_SCORES.register("same_cluster")
@dataclass(frozen=True)
class SameCluster(AttentionScore):
    """Share of the pairs of a unit whose key is among the n / clusters nearest of the centroid nearest to the query.

    Queries and keys are normalised; centroids are k-means of the keys (Roy et al. 2021, arXiv 2003.05997, which learns them with
    the model: `attention.routing.RoutingAttention`).

    Attributes:
        clusters: None: sqrt of the keys.
        steps: of k-means.
    """

    clusters: int | None = None
    steps: int = 4
    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Shares, 1 or 0 for units of one pair."""
        q, k = (F.layer_norm(t.float(), t.shape[-1:]) for t in (heads.q, heads.k))
        clusters = self.clusters or max(1, isqrt(heads.keys))
        _, centres = kmeans(k, clusters, self.steps)
        width = -(-heads.keys // centres.shape[2])
        best = (k @ centres.mT).topk(width, 2).indices
        inside = torch.zeros_like(k[..., :1]).expand(-1, -1, -1, centres.shape[2]).scatter(2, best, 1.0)
        asks = F.one_hot((q @ heads.shared(centres).mT).argmax(-1), centres.shape[2]).to(inside)
        rows, columns = heads.rows_of(unit.rows), heads.columns_of(unit.cols)
        return heads.pooled(asks, rows) @ heads.shared(heads.pooled(inside, columns)).mT
