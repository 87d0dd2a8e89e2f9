"""Error of approximation: how wrong a unit's centroid is, rather than how much it weighs (S9; SVG-EAR)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.clusters import means, members
from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("centroid_error")
@dataclass(frozen=True)
class CentroidError(AttentionScore):
    """|sum over j in J of (e^s_j - e^s_J) (v_j, 1)| / sum over all j of e^s_j, s_j = scale q . k_j, s_J = scale q . mean(k_J).

    q is the mean query of a row of units: what the numerator and the denominator of a row lose if the unit's keys are replaced
    by their mean (Zhou et al. 2026, arXiv 2603.08982; the normalisation is our reading). Units may be ragged clusters.
    """

    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Errors of units; every key is looked at once for each row of units."""
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        k, v = (heads.shared(t.to(wide)) for t in (heads.k, heads.v))
        if heads.clusters is not None:
            return self._of_clusters(heads, k, v)
        q, columns = heads.pooled(heads.q.to(wide), heads.rows_of(unit.rows)), heads.columns_of(unit.cols)
        logits = q @ k.mT * heads.factor
        centre = q @ heads.pooled(k, columns).mT * heads.factor
        most = torch.maximum(logits.amax(-1), centre.amax(-1)).unsqueeze(-1)
        weight, mean = (logits - most).exp(), (centre - most).exp()
        total = weight.sum(-1)
        found = []
        for column, (a, b) in enumerate(columns):
            off = weight[..., a:b] - mean[..., column, None]
            lost = (off @ v[:, :, a:b]).square().sum(-1) + off.sum(-1).square()
            found.append(lost.sqrt() / total)
        return torch.stack(found, -1)

    def _of_clusters(self, heads: Heads, k: Tensor, v: Tensor) -> Tensor:
        clusters = heads.clusters
        assert clusters is not None
        q, count = means(heads.q.to(k.dtype), clusters.rows), clusters.wide()
        at = members(count, heads.keys)
        logits, centre = q @ k.mT * heads.factor, q @ means(k, count).mT * heads.factor
        most = torch.maximum(logits.amax(-1), centre.amax(-1)).unsqueeze(-1)
        weight = (logits - most).exp()
        off = weight - (centre - most).exp().gather(-1, at.unsqueeze(2).expand(-1, -1, q.shape[2], -1))
        one = torch.nn.functional.one_hot(at, count.shape[-1]).to(k)
        lost = (off @ one).square()
        for value in v.unbind(-1):
            lost = lost + ((off * value.unsqueeze(-2)) @ one).square()
        return lost.sqrt() / weight.sum(-1, keepdim=True)
