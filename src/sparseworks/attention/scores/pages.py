"""Page bound: no key of a page scores higher for the query (S3, Quest)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads, products
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.budget import Count, Density
from sparseworks.core.pattern import Tile
from sparseworks.exec.attention.pages import PAGE

if TYPE_CHECKING:
    from sparseworks.attention.method import AttentionMethod


@ATTENTION_SCORES.register("page_bound")
@dataclass(frozen=True)
class PageBound(AttentionScore):
    """scale sum_c max(q_c max_j k_jc, q_c min_j k_jc) >= every scale q . k_j of the page (Tang et al. 2024, arXiv 2406.10774).

    Rows of more than one query take the largest bound of their queries.
    """

    shared: str | None = None

    def cache(self, method: AttentionMethod) -> str:
        """`pages` where the page kernel does what the method says: pages of 64, a density or a count, no other mask."""
        unit = method.pattern.unit
        plain = self.shared is None and method.always is None and method.rest is None
        fits = (unit.rows, unit.cols) == (1, PAGE) and isinstance(method.budget, Density | Count)
        return "pages" if plain and fits else ""

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Upper bounds of pages."""
        cuts = heads.columns_of(unit.cols)
        return upper(heads, unit, *(heads.pooled(heads.k, cuts, how) for how in ("max", "min")))


def upper(
    heads: Heads, unit: Tile, most: Float[Tensor, "batch kv_heads pages d"], least: Float[Tensor, "batch kv_heads pages d"]
) -> Float[Tensor, "batch heads rows pages"]:  # fmt: skip
    """scale sum_c max(q_c most_c, q_c least_c) for pages with these extremes, the largest of the queries of a row."""
    wide = torch.promote_types(heads.q.dtype, torch.float32)
    q = heads.q.to(wide)
    bound = products(q.clamp(min=0), most.to(wide)) + products(q.clamp(max=0), least.to(wide))
    return heads.pooled(bound * heads.factor, heads.rows_of(unit.rows), "max")
