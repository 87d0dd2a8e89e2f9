"""Activate while pruning: part of a round's pruning goes to weights that keep ReLUs dead."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.select import select_across


def activated(
    weights: Mapping[str, Float[Tensor, "rows cols"]],
    began: Mapping[str, Float[Tensor, "rows cols"]],
    masks: Mapping[str, Bool[Tensor, "rows cols"]],
    total: int,
) -> dict[str, Bool[Tensor, "rows cols"]]:
    """`total` entries of `masks`: of all negative weights those go that moved least, |w - w_began|, over the whole model.

    Where fewer are negative than have to go, the rest goes by magnitude.

    Source: Liu et al., 2022, arXiv 2212.06145.

    Args:
        began: the weights at the start of the round.
    """
    scores = {}
    for name, w in weights.items():
        moved = (w - began[name].to(w)).abs()
        scores[name] = torch.where(w < 0, moved, _above(weights, began) + w.abs()).masked_fill(~masks[name], -torch.inf)
    kept = select_across(list(scores.values()), total)
    return dict(zip(scores, kept, strict=True))


def _above(weights: Mapping[str, Tensor], began: Mapping[str, Tensor]) -> float:
    """A number above every movement."""
    return 1.0 + max(float((w - began[name].to(w)).abs().max()) for name, w in weights.items() if w.numel())
