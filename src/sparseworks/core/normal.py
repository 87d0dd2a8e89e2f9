"""A threshold from mean and deviation, instead of a sort: how many entries exceed it is known of normally distributed ones."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.errors import BudgetError


def normal_threshold(
    x: Float[Tensor, "*lead n"], keep: float, among: Bool[Tensor, "*lead n"] | None = None
) -> Float[Tensor, "*lead 1"]:
    """mean(x) + std(x) Phi^-1(1 - keep / n) of the last axis: about `keep` of normally distributed entries lie above it.

    Of other distributions more or fewer do: fewer where the tails are heavy and keep / n is small. Where `keep` is all or more, it
    lies some 5 deviations below the mean. Differentiable; at least in float32.

    Args:
        among: entries that there are, at least one in a row; n is their number (None: all).

    Source: You et al., 2025, arXiv 2506.06644 (Spark Transformer).

    Raises:
        BudgetError: `keep` is not above 0.
    """
    if not keep > 0:
        raise BudgetError(f"A statistical threshold keeps more than 0 entries, got {keep}.")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    n = torch.tensor(float(x.shape[-1]), dtype=torch.float64) if among is None else among.sum(-1, keepdim=True).double()
    mean = lambda t: (t if among is None else t.where(among, 0.0)).sum(-1, keepdim=True) / n.to(t)  # noqa: E731
    middle = mean(x)
    deviation = mean((x - middle).square()).clamp(min=1e-12).sqrt()  # with a gradient where all are equal
    return middle + deviation * torch.special.ndtri((1 - keep / n).clamp(1e-6, 1 - 1e-6)).to(x)
