"""Exact mass: the attention probability that a unit really holds (S2 over all rows): the oracle that other scores are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("exact_mass")
@dataclass(frozen=True)
class ExactMass(AttentionScore):
    """mean over i in I of sum over j in J of softmax(scale q k')_ij; computes the whole map, row of units by row of units."""

    probability: ClassVar[bool] = True
    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Mean mass of every unit."""
        return block_mass(heads, unit)


def block_mass(
    heads: Heads, unit: Tile, lse: Float[Tensor, "batch heads queries"] | None = None
) -> Float[Tensor, "batch heads rows columns"]:
    """mean over i in I of sum over j in J of e^(s_ij - lse_i); `lse` of the whole rows, or a stale one in its place."""
    edges = torch.tensor([b for _, b in heads.columns_of(unit.cols)], device=heads.q.device) - 1
    found = []
    for first, last in heads.rows_of(unit.rows):
        scores = heads.scores(slice(first, last))
        norm = scores.logsumexp(-1) if lse is None else lse[:, :, first:last]
        held = (scores - norm.unsqueeze(-1)).exp().mean(-2).cumsum(-1)[..., edges]
        found.append(held.diff(dim=-1, prepend=torch.zeros_like(held[..., :1])))
    return torch.stack(found, -2).clamp(min=0)
