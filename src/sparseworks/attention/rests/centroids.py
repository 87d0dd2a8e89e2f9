"""Centroids: what is not kept is attended to by mean key and mean value, counted as often as it has tokens (SVG-EAR)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.clusters import means
from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept, Output
from sparseworks.attention.rest import RESTS, Rest
from sparseworks.attention.rests.summaries import attend_summaries, left_out, sizes, summary_pairs
from sparseworks.exec.attention import merge


@RESTS.register("centroids")
@dataclass(frozen=True)
class Centroids(Rest):
    """A unit J that is not kept enters as one key mean(k_J) with value mean(v_J) and weight |J| e^(scale q . mean(k_J)).

    Every query uses itself, not the mean of its unit. Exact where the keys of a unit are equal (Zhou et al. 2026,
    arXiv 2603.08982). Units that reach into the future of a query have no mean it may see and stay left out.

    Attributes:
        counted: whether the weight holds the number of tokens (False shows what that is worth).
    """

    counted: bool = True

    def __call__(self, heads: Heads, kept: Kept, found: Output) -> Output:
        """Merged with the centroids of what was left out."""
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        if kept.clusters is not None:
            count = kept.clusters.columns
            k, v = (means(t.to(wide), count) for t in (heads.k, heads.v))
        else:
            cuts = heads.columns_of(kept.unit.cols)
            k, v = (heads.pooled(t.to(wide), cuts) for t in (heads.k, heads.v))
            count = sizes(cuts, k)
        bias = count.clamp(min=1).to(wide).log() * self.counted
        return merge([found, attend_summaries(heads, kept.unit, left_out(heads, kept), k, v, bias)])

    def cost(self, heads: Heads, kept: Kept) -> Float[Tensor, "batch heads"]:
        """One pair for each query and unit left out."""
        return summary_pairs(heads, kept.unit, left_out(heads, kept).double())
