"""Two-stage indexer: a filter of blocks before tokens are scored (HISA)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("two_stage_indexer")
@dataclass(frozen=True)
class TwoStageIndexer(AttentionScore):
    """I_tj = sum_h w_th relu(q_th . k_j) for keys of the best `blocks` blocks by the same score of mean keys; -inf elsewhere.

    The first block and the query's own are always among them: n / block + blocks * block products a query instead of n
    (Xu et al. 2026, arXiv 2603.28458). The score is one for all heads. An indexer (queries, key, weights) is read from
    `heads.memory["indexer"]`; without one the queries and keys of the heads themselves take its place, every head weighing 1.

    Attributes:
        block: keys of a block.
        blocks: that pass the filter; None: all, the flat indexer.
    """

    block: int = 128
    blocks: int | None = 64
    shared: str | None = None

    def __post_init__(self):
        if self.block < 1 or (self.blocks is not None and self.blocks < 1):
            raise BudgetError(f"Blocks hold at least one key and at least one passes, got {self}.")

    def everything(self) -> TwoStageIndexer:
        """The flat indexer."""
        return replace(self, blocks=None)

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch 1 rows columns"]:
        """Scores of units, of several tokens the largest."""
        q, k, w = heads.memory.get("indexer") or _own(heads)
        token = index_scores(q, k, w)
        if self.blocks is not None:
            token = token.masked_fill(~self._passed(heads, q, k, w), -torch.inf)
        rows, columns = heads.rows_of(unit.rows), heads.columns_of(unit.cols)
        found = token if unit.cols == 1 else heads.pooled(token.mT, columns, "max").mT
        return found if unit.rows == 1 else heads.pooled(found, rows, "max")

    def _passed(self, heads: Heads, q: Tensor, k: Tensor, w: Tensor) -> Tensor:
        """Keys of each query in a block that passes."""
        coarse = index_scores(q, heads.pooled(k, heads.columns_of(self.block)), w)
        first = torch.arange(coarse.shape[-1], device=q.device) * self.block
        at = (
            torch.arange(heads.offset, heads.offset + heads.queries, device=q.device)[:, None]
            if heads.causal
            else heads.keys
        )
        own = (first <= at) & (at < first + self.block)
        coarse = coarse.masked_fill(first > at, -torch.inf).masked_fill(own | (first == 0), torch.inf)
        best = coarse.topk(min(self.blocks or 1, coarse.shape[-1]), -1).indices
        passed = torch.zeros_like(coarse, dtype=torch.bool).scatter(-1, best, True)
        return passed.repeat_interleave(self.block, -1)[..., : heads.keys]


def index_scores(
    q: Float[Tensor, "batch index_heads queries d"], k: Float[Tensor, "batch index_kv keys d"], w: Float[Tensor, "batch index_heads queries"]
) -> Float[Tensor, "batch 1 queries keys"]:  # fmt: skip
    """sum_h w_th relu(q_th . k_j)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return ((q @ k.mT).relu() * w.unsqueeze(-1)).sum(1, keepdim=True)


def _own(heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    q, k = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (heads.q, heads.k))
    return q, k, torch.ones_like(q[..., 0])
