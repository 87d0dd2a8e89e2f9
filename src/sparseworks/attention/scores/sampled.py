"""Sampled mass: the attention among a sample of the tokens of every unit (S2; Pyramid Sparse Attention)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads, products
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("sampled_mass")
@dataclass(frozen=True)
class SampledMass(AttentionScore):
    """mean over sampled i in I of sum over sampled j in J of softmax over all sampled keys: `share`^2 of the cost of the map.

    Source: Li et al. 2025, arXiv 2512.04025 (a quarter of every block).
    """

    share: float = 0.25
    seed: int = 0
    probability: ClassVar[bool] = True
    shared: str | None = None

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise BudgetError(f"The sampled share of tokens lies in (0, 1], got {self.share}.")

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Estimated mass of every unit."""
        draw = torch.Generator().manual_seed(self.seed)
        (rows, row), (keys, column) = (
            self._sample(cuts, draw) for cuts in (heads.rows_of(unit.rows), heads.columns_of(unit.cols))
        )
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        logits = products(heads.q[:, :, rows].to(wide), heads.k[:, :, keys].to(wide)) * heads.factor
        if heads.causal:
            logits = logits.masked_fill((keys > rows[:, None] + heads.offset).to(logits.device), -torch.inf)
        weight = logits.softmax(-1).nan_to_num(0.0)
        one_hot = torch.nn.functional.one_hot
        into, of = one_hot(column).to(weight), one_hot(row).to(weight)
        return (of / of.sum(0)).mT @ (weight @ into)

    def _sample(self, cuts: list[tuple[int, int]], draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and the unit of each."""
        chosen = [a + torch.randperm(b - a, generator=draw)[: max(1, round(self.share * (b - a)))] for a, b in cuts]
        return torch.cat(chosen), torch.arange(len(cuts)).repeat_interleave(torch.tensor([len(c) for c in chosen]))
