"""Regions: keys of the prompt and keys that are being generated compete among themselves (SparseD)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.exact import ExactMass
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("by_region")
@dataclass(frozen=True)
class ByRegion(AttentionScore):
    """1 - rank / n within the region, of the n units that are prompt or of those that are not; rank 0 is the best of a row.

    A density then takes the same share of both, so neither crowds out the other (Wang et al. 2025, arXiv 2509.24014, code). A unit
    that holds both belongs to the prompt.
    """

    score: AttentionScore = field(default_factory=ExactMass)
    probability: ClassVar[bool] = False
    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Places of the units; those of the future come last, and are masked by the caller."""
        scores = self.score(heads, unit)
        if self.score.shared is not None and scores.shape[1] == heads.heads:
            scores = heads.shared(heads.grouped(scores, self.score.shared))  # type: ignore[arg-type]
        scores = scores.masked_fill(~heads.allowed(unit).to(scores.device), -torch.inf)
        prompt = torch.tensor([first < heads.prompt for first, _ in heads.columns_of(unit.cols)], device=scores.device)
        found = torch.empty_like(scores)
        for region in (prompt, ~prompt):
            rank = scores[..., region].argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
            there = (scores[..., region] > -torch.inf).sum(-1, keepdim=True)
            found[..., region] = 1 - rank / there.clamp(min=1)
        return found.masked_fill(scores == -torch.inf, -torch.inf)
