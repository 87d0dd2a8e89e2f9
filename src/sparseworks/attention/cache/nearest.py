"""Merging: tokens that go are taken up by the kept token whose key is most alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.cache.held import MERGES, Held, Merge


@MERGES.register("nearest_key")
@dataclass(frozen=True)
class NearestKey(Merge):
    """v_i' = (e v_i + sum_j w_j v_j) / (e + sum_j w_j) over the tokens j that go to i = argmax cos(k_j, k_i), w_j = e^cos(k_j, k_i).

    The weights of D2O (Wan et al. 2024, arXiv 2406.13035). Keys stay as they are, so that what is attended to does not change; a token
    goes nowhere if no kept key has a cosine of at least `least`.
    """

    least: float = 0.0
    keys: bool = False

    def __call__(self, held: Held, kept: Bool[Tensor, "batch kv_heads held"]) -> tuple[Tensor, Tensor]:
        """Keys and values after merging; with `keys` the keys are merged by the same weights."""
        stays, goes = kept & held.valid, held.valid & ~kept
        k = F.normalize(held.k.float(), dim=-1)
        alike = (k @ k.mT).masked_fill(~stays.unsqueeze(-2), -torch.inf)
        best, to = alike.max(-1)
        weight = best.exp() * (goes & (best >= self.least))
        e = torch.full_like(weight, torch.e)
        total = e.scatter_add(-1, to, weight)
        out = []
        for x, wanted in ((held.k, self.keys), (held.v, True)):
            moved = (x.float() * torch.e).scatter_add(
                2, to.unsqueeze(-1).expand_as(x), x.float() * weight.unsqueeze(-1)
            )  # fmt: skip
            out.append((moved / total.unsqueeze(-1)).to(x.dtype) if wanted else x)
        return out[0], out[1]
