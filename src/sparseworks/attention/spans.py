"""Spans of heads: what masking an entry of attention costs by first order, and the spans that cost least at a mean density (MoA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.allocate.knapsack import cheapest
from sparseworks.attention.masks import Elastic, Mask, PerHead, Sink
from sparseworks.attention.method import AttentionMethod
from sparseworks.core.errors import ShapeError


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


def choose_spans(
    costs: Mapping[int, Float[np.ndarray, "heads rules"]], grid: Sequence[Rule], density: float = 0.5, sink: int = 64
) -> list[Rule]:
    """One rule a head that minimises the summed cost over the lengths of `costs`, with a mean density of at most `density` at each.

    Lengths are weighted equally after division by their largest cost; pairs are counted at the length where rules are dearest
    relative to the budget. Exact dynamic programming in place of the paper's mixed-integer program, so there is one plan rather
    than a Pareto set.

    Raises:
        BudgetError: even the shortest spans keep more.
    """
    heads = len(next(iter(costs.values())))
    spent = {n: np.array([_pairs(r, n, sink) for r in grid]) for n in costs}
    total = {n: n * (n + 1) // 2 for n in costs}
    share = np.max([spent[n] / total[n] for n in costs], axis=0)  # a rule that fits at this share fits at every length
    units = np.ceil(share * 10_000).astype(np.int64)
    error = sum(c / max(float(c.max()), 1e-30) for c in costs.values())
    chosen = cheapest([units] * heads, list(np.asarray(error)), round(density * heads * 10_000))
    return [grid[i] for i in chosen]


def with_spans(method: AttentionMethod, plan: Sequence[Rule], sink: int = 64) -> AttentionMethod:
    """The method with one span a head."""
    return method.with_(always=PerHead(tuple(rule.mask(sink) for rule in plan)))


def _pairs(rule: Rule, n: int, sink: int) -> int:
    """Pairs that a rule keeps of a causal map of n tokens."""
    span = max(1, round(rule.alpha + rule.beta * n))
    place = np.arange(n)
    return int(np.minimum(place + 1, span + np.minimum(sink, np.maximum(place + 1 - span, 0))).sum())
