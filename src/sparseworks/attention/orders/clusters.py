"""Semantic order: tokens of a cluster side by side, queries and keys each by clusters of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import one_hot

from sparseworks.attention.clusters import Clusters
from sparseworks.attention.heads import Heads
from sparseworks.attention.order import ORDERS, Order
from sparseworks.core.errors import BudgetError
from sparseworks.solve.clusters import kmeans


@ORDERS.register("semantic")
@dataclass(frozen=True)
class Semantic(Order):
    """Queries sorted by k-means cluster of the queries, keys by cluster of the keys, for each head (Yang et al. 2025, arXiv 2505.18875).

    With the pattern `clusters()` units are the clusters; blocks are cut from the order whatever clusters they touch.

    Attributes:
        clusters: of queries and of keys.
        steps: of k-means in the first call; later calls go on from the centroids of the last with one step.
    """

    clusters: int = 32
    steps: int = 6

    def __post_init__(self):
        if min(self.clusters, self.steps) < 1:
            raise BudgetError(f"At least one cluster and one step are needed, got {self}.")

    def __call__(self, heads: Heads) -> tuple[Int[Tensor, "batch heads queries"], Int[Tensor, "batch kv_heads keys"]]:
        """Position -> token."""
        return self._sorted(heads, heads.q, "queries"), self._sorted(heads, heads.k, "keys")

    def cut(self, heads: Heads) -> Clusters:
        """The clusters of the last call, of sizes as they came out."""
        return Clusters(heads.memory["sizes", "queries"], heads.memory["sizes", "keys"])

    def _sorted(self, heads: Heads, x: Tensor, what: str) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        start = heads.memory.get(("centroids", what))
        fits = start is not None and start.shape[:2] == x.shape[:2]
        label, centres = kmeans(x, self.clusters, 1 if fits else self.steps, start if fits else None)
        heads.memory["centroids", what] = centres
        heads.memory["sizes", what] = one_hot(label, centres.shape[-2]).sum(-2)
        return label.argsort(dim=-1, stable=True)
