"""Spans of heads: what masking an entry of attention costs by first order, and the spans that cost least at a mean density (MoA)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.allocate.knapsack import cheapest
from sparseworks.attention.masks import Elastic, Mask, PerHead, Sink
from sparseworks.attention.method import AttentionMethod
from sparseworks.core.errors import BudgetError, ShapeError

_FINE = 10_000
"""Units of a head's density, of which a knapsack counts whole ones."""


def influence(
    weights: Float[Tensor, "*some queries keys"], gradient: Float[Tensor, "*some queries keys"]
) -> Float[Tensor, "*some queries keys"]:
    """dL_ij = A_ij (sum_k G_ik A_ik - G_ij) / (1 - A_ij), G = dL/dA: how a loss linear in A changes if pair ij is masked.

    The other weights of the row grow to sum to 1 again. 0 where A_ij is 0; where it is 1 the row would be empty, and the answer
    is inf. (Fu et al. 2024, arXiv 2406.14909)

    Raises:
        ShapeError: shapes differ.
    """
    if weights.shape != gradient.shape:
        raise ShapeError(f"Weights {tuple(weights.shape)} and gradients {tuple(gradient.shape)} are of one shape.")
    mean = (weights * gradient).sum(-1, keepdim=True)
    left = 1 - weights
    return torch.where(left > 0, weights * (mean - gradient) / left, torch.inf).where(
        weights > 0, torch.zeros_like(weights)
    )


@dataclass(frozen=True)
class Rule:
    """A span of alpha + beta n tokens at n tokens, after a sink."""

    alpha: float
    beta: float

    def mask(self, sink: int) -> Mask:
        """As a mask."""
        return Sink(sink) | Elastic(self.alpha, self.beta)


def rules(alphas: Sequence[float] = (0, 1024, 2048, 3072), betas: Sequence[float] = tuple(i / 8 for i in range(9))) -> list[Rule]:  # fmt: skip
    """Every pair of an offset and a slope whose span is not empty."""
    return [Rule(a, b) for a in alphas for b in betas if a + b > 0]


def span_costs(
    influences: Float[Tensor, "heads queries keys"], grid: Sequence[Rule], sink: int = 64
) -> Float[np.ndarray, "heads rules"]:
    """sum of |dL_ij| over the pairs of the past that each rule masks, of every head."""
    _, queries, keys = influences.shape
    place = torch.arange(keys - queries, keys)[:, None]
    seen = torch.arange(keys) <= place
    found = []
    for rule in grid:
        kept = rule.mask(sink).pairs(queries, keys, offset=keys - queries)[0]
        masked = seen & ~kept
        found.append((influences.abs() * masked.to(influences.device)).nan_to_num(posinf=0.0).sum((-2, -1)))
    return torch.stack(found, -1).double().cpu().numpy()


@dataclass(frozen=True)
class Plan:
    """One rule a head, what it costs at the profiled lengths and how dense it is at the bounded ones.

    Attributes:
        rules: of each head.
        costs: length -> summed |dL| of what is masked.
        densities: length -> kept over allowed pairs, the mean over heads.
    """

    rules: tuple[Rule, ...]
    costs: Mapping[int, float]
    densities: Mapping[int, float]


def choose_spans(
    costs: Mapping[int, Float[np.ndarray, "heads rules"]], grid: Sequence[Rule], density: float = 0.5, sink: int = 64
) -> list[Rule]:
    """One rule a head that minimises the summed cost over the lengths of `costs`, with a mean density of at most `density` at each.

    Lengths are weighted equally after division by their largest cost. One compromise of those that `span_plans` finds, for where
    nothing can be validated.

    Raises:
        BudgetError: even the shortest spans keep more.
    """
    plans = _solved(costs, grid, dict.fromkeys(costs, density), sink, [np.ones(len(costs))])
    scale = {n: max(float(c.max()), 1e-30) for n, c in costs.items()}
    return list(min(plans, key=lambda p: sum(p.costs[n] / scale[n] for n in costs)).rules)


def span_plans(
    costs: Mapping[int, Float[np.ndarray, "heads rules"]],
    grid: Sequence[Rule],
    density: float | Mapping[int, float] = 0.5,
    sink: int = 64,
    *,
    points: int = 5,
) -> list[Plan]:
    """The Pareto set of plans: none costs less at one profiled length without costing more at another (Fu et al. 2024, arXiv 2406.14909).

    min sum_n w_n cost_n / max cost_n subject to a mean density of at most `density` at every length, for weights w on a grid of
    `points` a side; of all plans found those stay that no other beats at every length. Dynamic programming over heads in place of
    the paper's mixed-integer programs with bounds on all but one cost, so plans on dents of the front are not found. Which of
    them to use is for `validated` to say.

    Args:
        costs: length -> cost of every rule in every head, see `span_costs`.
        grid: the rules.
        density: at every profiled length; or length -> density, unprofiled longer lengths among them.
        sink: tokens at the start that all heads see.
        points: 5 as in the published code.

    Raises:
        BudgetError: even the shortest spans keep more, or fewer than two points.
    """
    if points < 2:
        raise BudgetError(f"A front has at least its two ends, got {points} points.")
    bounds = dict(density) if isinstance(density, Mapping) else dict.fromkeys(costs, density)
    sides = product(range(points), repeat=len(costs))
    weights = [np.array(w) / (points - 1) for w in sides if sum(w) == points - 1]
    plans = _solved(costs, grid, bounds, sink, weights)
    values = np.array([[p.costs[n] for n in costs] for p in plans])
    beaten = (values[:, None] <= values).all(-1) & (values[:, None] < values).any(-1)
    return [p for p, lost in zip(plans, np.any(beaten, axis=0).tolist(), strict=True) if not lost]


def validated(plans: Sequence[Plan], loss: Callable[[Plan], float]) -> Plan:
    """The plan of least `loss`, the first of equals: measured on text of an unprofiled, longer length.

    Raises:
        BudgetError: no plans.
    """
    if not plans:
        raise BudgetError("There is no plan to choose from.")
    return min(plans, key=loss)


def with_spans(method: AttentionMethod, plan: Sequence[Rule], sink: int = 64) -> AttentionMethod:
    """The method with one span a head."""
    return method.with_(always=PerHead(tuple(rule.mask(sink) for rule in plan)))


def _solved(
    costs: Mapping[int, np.ndarray],
    grid: Sequence[Rule],
    bounds: Mapping[int, float],
    sink: int,
    weights: Sequence[np.ndarray],
) -> list[Plan]:
    """Plans within all bounds, each the cheapest for one of the weights; every plan once.

    A knapsack has one bound: each is tried in turn, all of them together, and the dearest of all for each rule, which always fits.
    """
    heads = len(next(iter(costs.values())))
    share = np.array([[_pairs(r, n, sink) / (n * (n + 1) / 2) / bound for r in grid] for n, bound in bounds.items()])
    scaled = [c / max(float(c.max()), 1e-30) for c in costs.values()]
    found: dict[tuple[int, ...], Plan] = {}
    for spent in (share.max(0), share.mean(0), *share):
        units = np.ceil(spent * _FINE).astype(np.int64)
        for w in weights:
            # A little of every length: of rules that cost the same at the weighted ones, the cheaper at the others.
            error = sum(c * max(float(x), 1e-6) for c, x in zip(scaled, w, strict=True))
            chosen = tuple(cheapest([units] * heads, list(np.asarray(error)), heads * _FINE))
            used = share[:, list(chosen)].mean(1)
            if used.max() <= 1 + 1e-9 and chosen not in found:
                cost = {n: float(c[range(heads), list(chosen)].sum()) for n, c in costs.items()}
                dense = {n: float(u * b) for (n, b), u in zip(bounds.items(), used, strict=True)}
                found[chosen] = Plan(tuple(grid[i] for i in chosen), cost, dense)
    return list(found.values())


def _pairs(rule: Rule, n: int, sink: int) -> int:
    """Pairs that a rule keeps of a causal map of n tokens."""
    span = max(1, round(rule.alpha + rule.beta * n))
    place = np.arange(n)
    return int(np.minimum(place + 1, span + np.minimum(sink, np.maximum(place + 1 - span, 0))).sum())
