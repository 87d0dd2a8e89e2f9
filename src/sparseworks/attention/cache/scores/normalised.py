"""Normalised mass: what a few queries attend to, divided by how many of them could (ZipVL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.cache.held import KV_SCORES, Held, KVScore


@KV_SCORES.register("normalised_mass")
@dataclass(frozen=True)
class NormalisedMass(KVScore):
    """sum over probe queries of softmax(scale q k')_j / number of probes that see j, mean over the heads of the layer.

    (He et al. 2024, arXiv 2410.08584.) Without the division early tokens win, which more queries see.

    Attributes:
        recent, spread: probes among the last queries, and among the others at equal distances (the paper draws them).
        normalise: False leaves the division out.
    """

    phases: ClassVar[frozenset[str]] = frozenset({"prefill", "between_turns"})
    recent: int = 64
    spread: int = 64
    normalise: bool = True

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """One score a token, the same for all heads."""
        n = held.q.shape[2]
        rows = probes(n, self.recent, self.spread).to(held.q.device)
        at = held.now[:, None] - (n - 1 - rows)
        wide = torch.promote_types(held.q.dtype, torch.float32)
        q = held.q[:, :, rows].unflatten(1, (held.k.shape[1], held.group)).to(wide)
        seen = (held.positions[:, :, None] <= at[:, None, :, None]) & held.valid[:, :, None]
        logits = (q @ held.k.to(wide).mT.unsqueeze(2) * held.scale).masked_fill(~seen.unsqueeze(2), -torch.inf)
        found = logits.softmax(-1).nan_to_num(0.0).sum(3).mean(2)
        if self.normalise:
            found = found / seen.sum(2).clamp(min=1)
        return found.mean(1, keepdim=True).expand(held.valid.shape)


def probes(queries: int, recent: int, spread: int) -> Tensor:
    """Indices of the last `recent` queries and of `spread` at equal distances before them, ascending."""
    first = max(0, queries - recent)
    before = (
        torch.linspace(0, max(first - 1, 0), min(spread, first)).round().long().unique()
        if first
        else torch.zeros(0).long()
    )
    return torch.cat([before, torch.arange(first, queries)])
