"""Routing: attention inside content clusters whose centroids follow the tokens (Routing Transformer)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import BudgetError
from sparseworks.exec.attention.reference import softmax_attend


def balanced(
    x: Float[Tensor, "batch heads tokens d"], centres: Float[Tensor, "heads clusters d"], width: int
) -> Int[Tensor, "batch heads clusters width"]:
    """Of each cluster the `width` tokens of the largest product with its centroid, in the order of the text."""
    near = x @ centres.mT
    return near.topk(min(width, x.shape[2]), 2).indices.sort(2).values.transpose(-1, -2)


def routed(
    x: Float[Tensor, "batch heads tokens d"], v: Float[Tensor, "batch heads tokens d"], places: Int[Tensor, "batch heads clusters width"],
    *, causal: bool = True, scale: float | None = None,
) -> Float[Tensor, "batch heads tokens d"]:  # fmt: skip
    """Attention within each cluster, x as queries and keys; a token in several clusters averages, one in none gives 0.

    Causal queries do not attend to themselves unless there is nothing before them in their cluster, since x_i . x_i is always large
    (Roy et al. 2021, arXiv 2003.05997).
    """
    batch, heads, _, width = places.shape
    q, values = _taken(x, places), _taken(v, places)
    mask = torch.ones(width, width, dtype=torch.bool, device=x.device)
    if causal:
        mask = mask.tril(-1)
        mask[0, 0] = True
    out, _ = softmax_attend(q, q, values, mask, x.shape[-1] ** -0.5 if scale is None else scale)
    flat = places.flatten(2)
    total = torch.zeros_like(v).scatter_add(2, flat.unsqueeze(-1).expand(-1, -1, -1, v.shape[-1]), out.flatten(2, 3))
    count = torch.zeros(batch, heads, v.shape[2], device=v.device, dtype=v.dtype).scatter_add(
        2, flat, torch.ones_like(flat, dtype=v.dtype)
    )
    return total / count.clamp(min=1).unsqueeze(-1)


def _taken(t: Tensor, places: Tensor) -> Tensor:
    at = places.flatten(2).unsqueeze(-1).expand(-1, -1, -1, t.shape[-1])
    return t.gather(2, at).unflatten(2, places.shape[2:])


def pairs(places: Int[Tensor, "batch heads clusters width"], tokens: int) -> Bool[Tensor, "batch heads tokens tokens"]:
    """Pairs that share a cluster, whatever their order."""
    member = F.one_hot(places, tokens).sum(-2).float()  # batch heads clusters tokens
    return (member.mT @ member) > 0


class RoutingAttention(nn.Module):
    """Shared queries and keys, normalised, attend within clusters; centroids follow by a moving average while training.

    mu <- decay mu + (1 - decay) mean of the tokens assigned to it (queries and keys are the same here), assigned by nearness
    (Roy et al. 2021, arXiv 2003.05997; decay .999).

    Args:
        heads: that route; let others attend to a window.
        d: of a head.
        clusters: about sqrt of the tokens.
        decay: of centroids.

    Raises:
        BudgetError: no cluster, or a decay outside [0, 1).
    """

    centres: Tensor

    def __init__(self, heads: int, d: int, clusters: int, decay: float = 0.999):
        super().__init__()
        if clusters < 1 or not 0 <= decay < 1:
            raise BudgetError(f"At least one cluster and a decay in [0, 1) are needed, got {clusters} and {decay}.")
        self.decay = decay
        self.register_buffer("centres", F.normalize(torch.randn(heads, clusters, d), dim=-1) * d**0.5)

    def forward(
        self, x: Float[Tensor, "batch heads tokens d"], v: Float[Tensor, "batch heads tokens d"], *, causal: bool = True
    ) -> Float[Tensor, "batch heads tokens d"]:
        """Outputs; `x` is what queries and keys are alike."""
        x = F.layer_norm(x, x.shape[-1:])
        places = balanced(x.detach(), self.centres, max(1, x.shape[2] // self.centres.shape[1]))
        if self.training:
            self.follow(x.detach())
        return routed(x, v, places, causal=causal)

    @torch.no_grad()
    def follow(self, x: Float[Tensor, "batch heads tokens d"]) -> None:
        """One step of the moving average."""
        label = (x @ self.centres.mT).argmax(-1)
        member = F.one_hot(label, self.centres.shape[1]).to(x.dtype)
        count = member.sum((0, 2)).unsqueeze(-1)
        mean = torch.einsum("bhnc,bhnd->hcd", member, x) / count.clamp(min=1)
        moved = self.decay * self.centres + (1 - self.decay) * mean
        self.centres.copy_(torch.where(count > 0, moved, self.centres))
