"""Tree search: chunks of keys are halved and the better halves go on, down to single units (HiP)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("tree")
@dataclass(frozen=True)
class TreeSearch(AttentionScore):
    """max over i in I of scale q_i . k_middle(J) for the units J that a beam of `keys` keys ends at; -inf elsewhere.

    A row of units begins with keys / (keys of a unit) equal chunks; each round halves them, scores every half by its middle key
    and keeps as many as there were: log2(n / keys) rounds of 2 keys / (keys of a unit) products (Lee et al. 2024, arXiv 2406.09827).

    Attributes:
        keys: width of the beam; None: every unit is scored.
    """

    keys: int | None = 512
    shared: str | None = None

    def __post_init__(self):
        if self.keys is not None and self.keys < 1:
            raise BudgetError(f"A beam holds at least one key, got {self.keys}.")

    def everything(self) -> TreeSearch:
        """Without the search."""
        return replace(self, keys=None)

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Scores where the search ends."""
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        k, cuts = heads.shared(heads.k.to(wide)), heads.columns_of(unit.cols)
        found = []
        for a, b in heads.rows_of(unit.rows):
            end = heads.offset + b if heads.causal else heads.keys
            columns = sum(first < end for first, _ in cuts)
            nodes, scores = self._search(
                heads, heads.q[:, :, a:b].to(wide), k, heads.offset + a, end, unit.cols or heads.keys, columns
            )
            row = scores.new_full((*scores.shape[:2], len(cuts)), -torch.inf)
            found.append(row.scatter(-1, nodes, scores))
        return torch.stack(found, -2)

    def _search(
        self, heads: Heads, q: Tensor, k: Tensor, start: int, end: int, size: int, columns: int
    ) -> tuple[Tensor, Tensor]:
        """Units and scores of the beam of one row of units."""
        beam = columns if self.keys is None else max(1, self.keys // size)
        width = 1
        while -(-columns // width) > beam:
            width *= 2
        nodes = torch.arange(0, columns, width, device=q.device).expand(*q.shape[:2], -1)
        scores = _represented(heads, q, k, nodes, width, start, end, size)
        while width > 1:
            width //= 2
            nodes = torch.cat([nodes, nodes + width], -1)
            scores = _represented(heads, q, k, nodes, width, start, end, size).masked_fill(nodes >= columns, -torch.inf)
            scores, best = scores.topk(min(beam, nodes.shape[-1]), -1)
            nodes = nodes.gather(-1, best)
        return nodes.clamp(max=columns - 1), scores


def _represented(
    heads: Heads, q: Tensor, k: Tensor, nodes: Tensor, width: int, start: int, end: int, size: int
) -> Tensor:
    """max over the queries of scale q . k of the middle key of chunks [node, node + width) of units."""
    middle = (nodes * size + width * size // 2).clamp(max=end - 1)
    keys = k.gather(2, middle.unsqueeze(-1).expand(-1, -1, -1, k.shape[-1]))
    logits = q @ keys.mT * heads.factor
    if heads.causal:
        rows = torch.arange(start, start + q.shape[2], device=q.device)
        logits = logits.masked_fill(middle.unsqueeze(-2) > rows[:, None], -torch.inf)
    return logits.amax(-2)
