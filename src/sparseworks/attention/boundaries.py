"""Boundaries of chunks: where attention changes from one token to the next, by similarity of keys or by a small trained predictor (DHSA)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.attention.heads import Heads


def novelty(keys: Float[Tensor, "batch tokens d"], width: int = 4) -> Float[Tensor, "batch tokens"]:
    """1 - cosine of the mean of the `width` keys before a token and that of the `width` keys from it on; 0 at the first token."""
    left, right = _sides(keys, width)
    found = 1 - F.cosine_similarity(left, right, dim=-1)
    return torch.cat([torch.zeros_like(found[:, :1]), found[:, 1:]], 1)


def peaks(score: Float[Tensor, "batch tokens"], apart: int = 8, least: float = 0.5) -> Bool[Tensor, "batch tokens"]:
    """Tokens of at least `least` that are the largest within `apart` to each side (the first of equals); token 0 begins a chunk.

    Non-maximum suppression over 8 as in Xiong et al. 2025, arXiv 2510.24606.
    """
    best, where = F.max_pool1d(score[:, None], 2 * apart - 1, 1, apart - 1, return_indices=True)
    chosen = (where[:, 0] == torch.arange(score.shape[1], device=score.device)) & (best[:, 0] >= least)
    chosen[:, 0] = True
    return chosen


def labels(
    weights: Float[Tensor, "batch heads queries keys"], width: int = 4, ratio: float = 1.1
) -> Bool[Tensor, "batch keys"]:
    """Whether later queries give the `width` keys before a token and the `width` keys from it on masses that differ by > `ratio`.

    From dense attention; mass is the mean over heads and over queries behind both sides (Xiong et al. 2025, arXiv 2510.24606).
    """
    mass = weights.mean(1)
    n = mass.shape[-1]
    sums = F.pad(mass.cumsum(-1), (1, 0))
    at = torch.arange(n, device=mass.device)
    low, high = (at - width).clamp(min=0), (at + width).clamp(max=n)
    before, after = sums[..., at] - sums[..., low], sums[..., high] - sums[..., at]
    later = (at[:, None] >= high) | (at[:, None] == n - 1)  # queries that see both sides
    before, after = ((m * later[-mass.shape[-2] :]).sum(-2) for m in (before, after))
    most, least = torch.maximum(before, after), torch.minimum(before, after)
    return most > ratio * least.clamp(min=1e-12)


class BoundaryPredictor(nn.Module):
    """Probability that a chunk begins at a token, from `width` keys to each side: both encoded, with product, difference and cosine.

    Put one on an attention module as `module.boundaries` and the score `ragged_chunks` uses it. (Xiong et al. 2025, arXiv 2510.24606)
    """

    def __init__(self, d: int, hidden: int = 32, width: int = 4):
        super().__init__()
        self.width = width
        self.encode = nn.Linear(d, hidden)
        self.judge = nn.Sequential(nn.Linear(4 * hidden + 1, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, keys: Float[Tensor, "batch tokens d"]) -> Float[Tensor, "batch tokens"]:
        """Logits."""
        left, right = _sides(keys, self.width)
        near = F.cosine_similarity(left, right, dim=-1).unsqueeze(-1)
        a, b = self.encode(left), self.encode(right)
        return self.judge(torch.cat([a, b, a * b, (a - b).abs(), near], -1)).squeeze(-1)

    def fit(self, keys: Float[Tensor, "batch tokens d"], wanted: Bool[Tensor, "batch tokens"], steps: int = 200, lr: float = 1e-2) -> list[float]:  # fmt: skip
        """Binary cross-entropy to `labels`, weighted so that both answers count equally; the model that made the keys is frozen."""
        rare = float((~wanted).sum() / wanted.sum().clamp(min=1))
        weight, target = torch.tensor(rare, device=keys.device), wanted.float()
        optimizer, losses = torch.optim.Adam(self.parameters(), lr), []
        for _ in range(steps):
            loss = F.binary_cross_entropy_with_logits(self(keys.detach()), target, pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses


def boundaries(heads: Heads, width: int, apart: int, least: float) -> Bool[Tensor, "batch keys"]:
    """First tokens of chunks: `heads.memory["boundaries"]`, else the predictor on the module, else peaks of the novelty of keys."""
    given = heads.memory.get("boundaries")
    if given is not None:
        return given.expand(heads.batch, -1)
    keys = heads.k.float().transpose(1, 2).flatten(2)
    predictor = getattr(heads.module, "boundaries", None)
    if predictor is not None:
        return peaks(predictor(keys).sigmoid(), apart, 0.5)
    return peaks(novelty(keys, width), apart, least)


def _sides(keys: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Means of the keys before each token and from it on; fewer at the ends."""
    n = keys.shape[1]
    sums = F.pad(keys.cumsum(1), (0, 0, 1, 0))
    at = torch.arange(n, device=keys.device)
    low, high = (at - width).clamp(min=0), (at + width).clamp(max=n)
    count = lambda a, b: (b - a).clamp(min=1)[:, None]  # noqa: E731
    return (sums[:, at] - sums[:, low]) / count(low, at), (sums[:, high] - sums[:, at]) / count(at, high)
