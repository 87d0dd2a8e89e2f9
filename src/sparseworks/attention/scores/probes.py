"""Probe mass: what a few probe queries attend to, over how many of them could (S2 normalised, ZipVL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.cache.scores.normalised import probes
from sparseworks.attention.heads import Heads, products
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("probe_mass")
@dataclass(frozen=True)
class ProbeMass(AttentionScore):
    """sum over probes i of A_ij / number of probes that see j, mean over heads: one share for every key of the layer.

    (He et al. 2024, arXiv 2410.08584.) Meant for units of all queries and one key, `Tile(None, 1)`, and a mass budget.

    Attributes:
        recent, spread: probes among the last queries, and among the others at equal distances (the paper draws them).
        normalise: False leaves the division out, and early keys win.
    """

    probability: ClassVar[bool] = True
    recent: int = 64
    spread: int = 64
    normalise: bool = True

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch 1 rows columns"]:
        """Shares of keys, summed over the keys of a unit, the same for every row of units."""
        rows = probes(heads.queries, self.recent, self.spread).to(heads.q.device)
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        logits = products(heads.q[:, :, rows].to(wide), heads.k.to(wide)) * heads.factor
        seen = torch.ones(len(rows), heads.keys, dtype=torch.bool, device=rows.device)
        if heads.causal:
            seen = torch.arange(heads.keys, device=rows.device) <= (rows + heads.offset)[:, None]
        found = logits.masked_fill(~seen, -torch.inf).softmax(-1).sum(2).mean(1, keepdim=True)
        if self.normalise:
            found = found / seen.sum(0).clamp(min=1)
        found = found / found.sum(-1, keepdim=True).clamp(min=1e-30)
        if unit.cols != 1:
            cuts = heads.columns_of(unit.cols)
            sizes = torch.tensor([b - a for a, b in cuts], device=found.device)
            found = heads.pooled(found.unsqueeze(-1), cuts)[..., 0] * sizes
        return found.unsqueeze(2).expand(-1, -1, heads.grid(unit)[0], -1)
