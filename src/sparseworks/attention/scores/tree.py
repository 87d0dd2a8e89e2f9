"""Tree search: chunks of keys are halved and the better halves go on, down to single units (HiP)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile
from sparseworks.exec.attention import peaks


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
        nodes, scores = self.beam(heads, unit)
        columns = heads.grid(unit)[1]
        found = scores.new_full((*scores.shape[:3], columns + 1), -torch.inf)  # one more, for nodes beyond the end
        return found.scatter_(-1, nodes.clamp(max=columns), scores)[..., :-1]

    def beam(
        self, heads: Heads, unit: Tile
    ) -> tuple[Int[Tensor, "batch heads rows beam"], Float[Tensor, "batch heads rows beam"]]:
        """Where the search ends; rows of units go through the rounds together."""
        rows, columns = heads.rows_of(unit.rows), heads.grid(unit)[1]
        tree = _Tree(heads, unit, _ends(heads, rows))
        most = columns if self.keys is None else min(columns, max(1, self.keys // tree.size))
        width = tree.widths(most)
        nodes = (torch.arange(most, dtype=torch.int32, device=heads.q.device) * width).repeat(
            heads.batch, heads.heads, 1, 1
        )
        scores = torch.full(nodes.shape, -torch.inf, dtype=tree.dtype, device=nodes.device)
        whole = int((width == 1).sum())  # rows that the beam holds whole: the first ones
        scores[:, :, :whole] = tree.scores(nodes[:, :, :whole], 1, slice(0, whole))
        half = int(width.max()) // 2 if len(rows) else 0
        while half:
            some = slice(int((width <= half).sum()), len(rows))
            both = torch.cat([nodes[:, :, some], nodes[:, :, some] + half], -1)
            scores[:, :, some], best = tree.scores(both, half, some).topk(most, -1, sorted=False)
            nodes[:, :, some] = both.gather(-1, best)
            half //= 2
        nodes, order = nodes.sort(-1)
        return nodes.long(), scores.gather(-1, order)


@dataclass(frozen=True)
class _Tree:
    """Chunks of units of keys as seen by rows of units of queries; `ends`: the first key that each row does not see."""

    heads: Heads
    unit: Tile
    ends: Int[Tensor, "rows 1"]

    @property
    def size(self) -> int:
        return self.unit.cols or max(1, self.heads.keys)

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.heads.q.dtype, torch.float32)

    def widths(self, beam: int) -> Int[Tensor, "rows 1"]:
        """Units of a chunk with which each row begins: the least power of two of which `beam` reach over all it sees."""
        columns, width = -(-self.ends // self.size), torch.ones_like(self.ends)
        while bool((short := -(-columns // width) > beam).any()):
            width = width * (1 + short.int())
        return width

    def scores(self, nodes: Int[Tensor, "batch heads rows count"], width: int, rows: slice) -> Tensor:
        """max over the queries of scale q . k of the middle key of chunks [node, node + width) of units; -inf beyond the end."""
        heads, ends = self.heads, self.ends[rows]
        middle = torch.minimum(nodes * self.size + width * self.size // 2, ends - 1)
        cuts = heads.rows_of(self.unit.rows)[rows]
        if not cuts:
            return torch.empty(nodes.shape, dtype=self.dtype, device=nodes.device)
        q = heads.q[:, :, cuts[0][0] : cuts[-1][1]]
        tall, offset = self.unit.rows or max(1, heads.offset + heads.queries), heads.offset + cuts[0][0]
        found = peaks(q, heads.k, middle, tall=tall, offset=offset, causal=heads.causal, scale=heads.scale)
        return found.masked_fill_(nodes * self.size >= ends, -torch.inf)


def _ends(heads: Heads, rows: list[tuple[int, int]]) -> Int[Tensor, "rows 1"]:
    ends = [heads.offset + b if heads.causal else heads.keys for _, b in rows]
    return torch.tensor(ends, dtype=torch.int32, device=heads.q.device).view(-1, 1)
