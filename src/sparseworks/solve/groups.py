"""Proximal maps of penalties on groups, as factors: both leave the direction of a group as it is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError


def envelope_prox(
    norms: Float[Tensor, " groups"], keep: int, step: float, weights: Float[Tensor, " groups"] | None = None
) -> Float[Tensor, " groups"]:
    """Factors u / (u + step d) of the proximal map of step * gs_k, the convex envelope of "at most k groups are not zero".

    gs_k(x) = 1/2 min {sum_j d_j |x_j|^2 / u_j : 0 <= u <= 1, sum u <= k}, the biconjugate of 1/2 sum d_j |x_j|^2 on the vectors with
    at most k groups. u_j = clip(|x_j| sqrt(step d_j) t - step d_j, 0, 1), with the t at which sum u = k found exactly
    among the places where a term begins or stops to grow. A group with u = 0 becomes zero.

    Source: Refael, Arbel and Huleihel, 2022, arXiv 2212.12921 (weighted group sparse envelope function).

    Args:
        norms: |x_j|.
        keep: k.
        weights: d_j, default 1.

    Raises:
        BudgetError: k or the step is not positive.
    """
    if keep < 1 or step <= 0:
        raise BudgetError(f"The envelope keeps at least one group by a positive step, got {keep} and {step}.")
    d = step * (torch.ones_like(norms) if weights is None else weights)
    slope = norms * d.sqrt()
    u = _water_fill(slope, d, keep)
    return u / (u + d)


def _water_fill(
    slope: Float[Tensor, " groups"], offset: Float[Tensor, " groups"], level: int
) -> Float[Tensor, " groups"]:
    """clip(slope t - offset, 0, 1) with t so that they sum to `level`; all that can grow are 1 if they are no more than that."""
    live = slope > 0
    if int(live.sum()) <= level:
        return live.to(slope)
    a, b = slope[live].double(), offset[live].double()
    places = torch.cat([b / a, (1 + b) / a])
    order = places.argsort()
    turns = torch.cat([a, -a])[order]  # how the slope of the sum changes at each place
    places = places[order]
    slopes = turns.cumsum(dim=0)
    sums = torch.cat([places.new_zeros(1), (slopes[:-1] * places.diff()).cumsum(dim=0)])
    at = int((sums <= level).nonzero()[-1])
    t = places[at] + (level - sums[at]) / slopes[at].clamp(min=torch.finfo(torch.float64).tiny)
    return (slope.double() * t - offset.double()).clamp(0, 1).to(slope) * live


def lasso_prox(
    norms: Float[Tensor, " groups"], step: float, weights: Float[Tensor, " groups"] | None = None
) -> Float[Tensor, " groups"]:
    """Factors max(0, 1 - step d_j / |x_j|) of the proximal map of step * sum_j d_j |x_j| (Yuan & Lin, 2006)."""
    d = torch.ones_like(norms) if weights is None else weights
    return (1 - step * d / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)
