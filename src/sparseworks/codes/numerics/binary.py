"""Sparse binary codes: their algebra, and the laws of the errors that threshold matching makes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, ShapeError


def overlap(a: Bool[Tensor, "*rows n"], b: Bool[Tensor, "*rows n"]) -> Int[Tensor, "*rows"]:
    """|a & b|: how many cells both have.

    Raises:
        ShapeError: codes of different length.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ShapeError(f"Codes of {a.shape[-1]} and {b.shape[-1]} cells have no overlap.")
    return (a & b).sum(-1)


def union(codes: Bool[Tensor, "patterns n"]) -> Bool[Tensor, " n"]:
    """The cells that any of the patterns has."""
    return codes.any(0)


def random_codes(
    patterns: int, n: int, active: int, generator: torch.Generator | None = None
) -> Bool[Tensor, "patterns n"]:
    """Codes with exactly `active` of n cells, uniform.

    Raises:
        BudgetError: more active cells than cells.
    """
    _check(n, active, 0, 0)
    return torch.rand(patterns, n, generator=generator).argsort(1).argsort(1) < active


def subsample(code: Bool[Tensor, " n"], synapses: int, generator: torch.Generator | None = None) -> Bool[Tensor, " n"]:
    """`synapses` of the active cells of a code, uniform: what one segment of a dendrite stores.

    Raises:
        BudgetError: more synapses than active cells.
    """
    places = code.nonzero()[:, 0]
    if not 0 <= synapses <= len(places):
        raise BudgetError(f"Cannot store {synapses} of {len(places)} active cells.")
    kept = torch.zeros_like(code)
    kept[places[torch.randperm(len(places), generator=generator)[:synapses]]] = True
    return kept


def false_positive(n: int, active: int, synapses: float, threshold: int) -> float:
    """P(overlap >= threshold) of a random code with a segment: sum_b C(s, b) C(n - s, a - b) / C(n, a), b = threshold ... s.

    `synapses` may be a union's size, `union_size`, rounded to whole cells.

    Raises:
        BudgetError: more active cells or synapses than cells.

    Source: Ahmad and Hawkins, 2016 (arXiv 1601.00720).
    """
    s = round(synapses)
    _check(n, active, s, threshold)
    return _tail(n, s, active, max(threshold, 0))


def false_negative(active: int, synapses: int, threshold: int, noise: float) -> float:
    """P(overlap < threshold) with the stored pattern when a share `noise` of its active cells fell silent.

    Of the `active` cells round((1 - noise) active) survive, a hypergeometric draw for the segment.

    Raises:
        BudgetError: more synapses than active cells, or noise outside [0, 1].
    """
    if not 0 <= noise <= 1:
        raise BudgetError(f"A share of noise lies in [0, 1], got {noise}.")
    _check(active, synapses, synapses, threshold)
    return 1 - _tail(active, round((1 - noise) * active), synapses, threshold)


def union_size(n: int, synapses: int, patterns: int) -> float:
    """n (1 - (1 - s / n)^M): expected cells of the union of M segments of s synapses."""
    _check(n, synapses, synapses, 0)
    return n * (1 - (1 - synapses / n) ** patterns)


def any_of(probability: float, segments: int) -> float:
    """1 - (1 - p)^segments: a neuron fires if any of its segments does."""
    return -math.expm1(segments * math.log1p(-probability)) if probability < 1 else 1.0


def _tail(n: int, marked: int, drawn: int, least: int) -> float:
    """P(at least `least` of `drawn` cells out of n are among the `marked`)."""
    log = lambda a, b: math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)  # noqa: E731
    whole = log(n, drawn)
    places = range(max(least, drawn - (n - marked), 0), min(marked, drawn) + 1)
    return min(1.0, math.fsum(math.exp(log(marked, b) + log(n - marked, drawn - b) - whole) for b in places))


def _check(n: int, active: int, synapses: int, threshold: int) -> None:
    if n < 1 or not 0 <= active <= n or not 0 <= synapses <= n or threshold < 0:
        raise BudgetError(f"Of {n} cells {active} active, {synapses} synapses, threshold {threshold}: not possible.")
