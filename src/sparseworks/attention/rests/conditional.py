"""Conditional expectation: a region enters by one key, and hands out its share by weights that all queries agree on (Combiner)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept, Output
from sparseworks.attention.rest import RESTS, Rest
from sparseworks.attention.rests.summaries import attend_summaries, left_out, summary_pairs
from sparseworks.exec.attention import merge


@RESTS.register("conditional")
@dataclass(frozen=True)
class Conditional(Rest):
    """A unit r that is not kept weighs e^(scale q . K_r), and of that its key j has p_r(j) = softmax over r of scale Q_r . k_j.

    K_r is the largest of the keys of the unit, channel by channel, and Q_r likewise of the queries at the unit's positions, so the
    weights of a row are a distribution over all keys. Equal to dense attention where units hold one key (Ren et al. 2021,
    arXiv 2107.05768). Queries that are not the last of the keys have no query at every position; keys then stand in for them.
    """

    def __call__(self, heads: Heads, kept: Kept, found: Output) -> Output:
        """Merged with the regions."""
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        cuts = heads.columns_of(kept.unit.cols)
        k, v = heads.k.to(wide), heads.v.to(wide)
        summary = heads.pooled(k, cuts, "max")
        asks = heads.grouped(heads.q.to(wide), "mean") if heads.queries == heads.keys else k
        asked = heads.pooled(asks, cuts, "max")
        values = []
        for unit, (a, b) in enumerate(cuts):
            share = (asked[:, :, unit : unit + 1] @ k[:, :, a:b].mT * heads.factor).softmax(-1)
            values.append(share @ v[:, :, a:b])
        bias = summary.new_zeros(len(cuts))
        return merge(
            [found, attend_summaries(heads, kept.unit, left_out(heads, kept), summary, torch.cat(values, 2), bias)]
        )

    def cost(self, heads: Heads, kept: Kept) -> Float[Tensor, "batch heads"]:
        """One pair for each query and unit left out, and for every key of a key head its weight within its unit."""
        return summary_pairs(heads, kept.unit, left_out(heads, kept).double()) + heads.keys / heads.group
