"""k-means of tokens, all heads at once: farthest tokens first, then a few steps of Lloyd; and clusters of equal size."""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError

_PRODUCTS = 1 << 24
"""Products of tokens and centroids held at a time."""


def kmeans(
    x: Float[Tensor, "*heads tokens d"], clusters: int, steps: int = 4, start: Float[Tensor, "*heads clusters d"] | None = None
) -> tuple[Int[Tensor, "*heads tokens"], Float[Tensor, "*heads clusters d"]]:  # fmt: skip
    """Labels and centroids that lower sum_i |x_i - mu_label(i)|^2 (Lloyd 1957); deterministic.

    Args:
        x: tokens.
        clusters: how many; at most as many as tokens are used.
        steps: of Lloyd; a cluster that runs empty keeps its centroid.
        start: centroids to go on from, those of the last call; default: from the first token on always the farthest.

    Raises:
        BudgetError: no cluster asked for.
    """
    if clusters < 1:
        raise BudgetError(f"At least one cluster is needed, got {clusters}.")
    centres = _farthest(x, min(clusters, x.shape[-2])) if start is None else start
    for _ in range(steps):
        label = nearest(x, centres)
        count = summed(torch.ones_like(x[..., :1]), label, centres.shape[-2])
        centres = torch.where(count > 0, summed(x, label, centres.shape[-2]) / count.clamp(min=1), centres)
    return nearest(x, centres), centres


def nearest(
    x: Float[Tensor, "*heads tokens d"], centres: Float[Tensor, "*heads clusters d"]
) -> Int[Tensor, "*heads tokens"]:
    """Nearest centroid of every token; some tokens at a time, since there may be a centroid for every twenty of them."""
    norm, some = centres.square().sum(-1).unsqueeze(-2), max(1, _PRODUCTS // max(1, centres[..., 0].numel()))
    return torch.cat([(part @ centres.mT * 2 - norm).argmax(-1) for part in x.split(some, -2)], -1)


def summed(
    x: Float[Tensor, "*heads tokens d"], label: Int[Tensor, "*heads tokens"], clusters: int
) -> Float[Tensor, "*heads clusters d"]:
    """sum of x_i over the tokens of every cluster, in a fixed order and at least in float32."""
    *heads, _, d = x.shape
    first = torch.arange(prod(heads), device=x.device).view(*heads, 1) * clusters
    at, rows = (label.long() + first).flatten(), x.reshape(-1, d).to(torch.promote_types(x.dtype, torch.float32))
    held = rows.new_zeros(prod(heads) * clusters, d)
    # A GPU adds by index in any order, but sorts what it puts by index.
    held = held.index_add_(0, at, rows) if x.is_cpu else held.index_put_((at,), rows, accumulate=True)
    return held.view(*heads, clusters, d).to(x.dtype)


def _farthest(x: Tensor, count: int) -> Tensor:
    chosen = [x[..., :1, :]]
    far = (x - chosen[0]).square().sum(-1)
    for _ in range(count - 1):
        at = far.argmax(-1)[..., None, None].expand(*x.shape[:-2], 1, x.shape[-1])
        chosen.append(x.gather(-2, at))
        far = torch.minimum(far, (x - chosen[-1]).square().sum(-1))
    return torch.cat(chosen, -2)


def balanced_kmeans(x: Float[Tensor, "rows d"], clusters: int, steps: int = 10) -> Int[Tensor, " rows"]:
    """Labels of k-means in which every cluster has rows/clusters members: of all pairs the nearest first, while there is room.

    Args:
        x: what is clustered.
        clusters: how many; divides the number of rows.
        steps: assignments, each followed by new centroids.

    Raises:
        BudgetError: clusters of equal size do not come out.
    """
    if clusters < 1 or len(x) % clusters:
        raise BudgetError(f"{len(x)} rows do not fall into {clusters} clusters of equal size.")
    centres = kmeans(x, clusters)[1]
    label = _with_room(x, centres)
    for _ in range(steps - 1):
        centres = torch.stack([x[label == c].mean(0) for c in range(clusters)])
        before, label = label, _with_room(x, centres)
        if label.equal(before):
            break
    return label


def _with_room(x: Tensor, centres: Tensor) -> Tensor:
    clusters, size = len(centres), len(x) // len(centres)
    room, label = [size] * clusters, [-1] * len(x)
    for pair in torch.cdist(x.double(), centres.double()).flatten().sort(stable=True).indices.tolist():
        row, cluster = divmod(pair, clusters)
        if label[row] < 0 and room[cluster]:
            label[row], room[cluster] = cluster, room[cluster] - 1
    return torch.tensor(label, device=x.device)
