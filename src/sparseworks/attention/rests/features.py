"""Random features: what is not kept is attended to by a low-rank kernel (Scatterbrain)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept, Output
from sparseworks.attention.rest import RESTS, Rest
from sparseworks.attention.rests.summaries import left_out
from sparseworks.core.errors import BudgetError
from sparseworks.exec.attention import merge


@RESTS.register("random_features")
@dataclass(frozen=True)
class RandomFeatures(Rest):
    """e^(scale q . k) ~ phi(q) . phi(k), phi(x) = e^(W x - |x|^2 / 2) / sqrt(features), W normal: exact on kept units, phi elsewhere.

    Unbiased for units chosen without looking at W (Chen et al. 2021, arXiv 2110.15343; features of Choromanski et al. 2020,
    arXiv 2009.14794). Units add up phi(k) v' once, so a row of units costs the units it leaves out times features times d.
    """

    features: int = 64
    seed: int = 0

    def __post_init__(self):
        if self.features < 1:
            raise BudgetError(f"At least one feature is needed, got {self.features}.")

    def __call__(self, heads: Heads, kept: Kept, found: Output) -> Output:
        """Merged with the kernel over what was left out."""
        q, k = (self.logs(t, heads.factor) for t in (heads.q, heads.k))
        most = k.amax((-2, -1), keepdim=True)
        phi = (k - most).exp()
        v = torch.nn.functional.pad(heads.v.to(phi.dtype), (0, 1), value=1.0)
        cuts = heads.columns_of(kept.unit.cols)
        held = torch.stack([phi[:, :, a:b].mT @ v[:, :, a:b] for a, b in cuts], 2).flatten(-2)
        state = left_out(heads, kept).to(phi.dtype) @ heads.shared(held)  # rows x features (d + 1)
        state = state.unflatten(-1, (self.features, -1))
        outs, lses = [], []
        for row, (a, b) in enumerate(heads.rows_of(kept.unit.rows)):
            top = q[:, :, a:b].amax(-1, keepdim=True)
            both = (q[:, :, a:b] - top).exp() @ state[:, :, row]
            weight = both[..., -1]
            some = weight > 0
            outs.append(both[..., :-1] / torch.where(some, weight, 1.0).unsqueeze(-1))
            log = torch.where(some, weight, 1.0).log() + top.squeeze(-1) + heads.shared(most).squeeze(-1)
            lses.append(torch.where(some, log, -torch.inf))
        return merge([found, (torch.cat(outs, 2).to(heads.q.dtype), torch.cat(lses, 2))])

    def cost(self, heads: Heads, kept: Kept) -> Float[Tensor, "batch heads"]:
        """Features of queries and keys, sums phi(k) v' of units and of what each row of units leaves out, and their use by queries."""
        own, seen, d = heads.queries, heads.keys / heads.group, heads.d
        each = self.features * (own * d + seen * d + (seen + own) * (d + 1))
        sums = left_out(heads, kept).sum((-2, -1)) * self.features * (d + 1)
        return (sums + each) / (2.0 * d)

    def logs(
        self, x: Float[Tensor, "batch some tokens d"], factor: float
    ) -> Float[Tensor, "batch some tokens features"]:
        """log phi of queries or keys."""
        x = x.to(torch.promote_types(x.dtype, torch.float32)) * factor**0.5
        draw = torch.Generator().manual_seed(self.seed)
        w = torch.randn(self.features, x.shape[-1], generator=draw, dtype=torch.float64).to(x)
        return x @ w.T - x.square().sum(-1, keepdim=True) / 2 - torch.tensor(float(self.features)).log().item() / 2
