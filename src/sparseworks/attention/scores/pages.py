"""Page bound: no key of a page scores higher for the query (S3, Quest)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("page_bound")
@dataclass(frozen=True)
class PageBound(AttentionScore):
    """scale sum_c max(q_c max_j k_jc, q_c min_j k_jc) >= every scale q . k_j of the page (Tang et al. 2024, arXiv 2406.10774).

    Rows of more than one query take the largest bound of their queries.
    """

    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Upper bounds of pages."""
        cuts = heads.columns_of(unit.cols)
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        most, least = (heads.shared(heads.pooled(heads.k.to(wide), cuts, how)) for how in ("max", "min"))
        q = heads.q.to(wide)
        bound = (q.clamp(min=0) @ most.mT + q.clamp(max=0) @ least.mT) * heads.factor
        return heads.pooled(bound, heads.rows_of(unit.rows), "max")
