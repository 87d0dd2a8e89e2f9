"""What every bound must do: `check_bound`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.select_bounded import select_bounded
from sparseworks.testing.examples import require

Summarise = Callable[[Float[Tensor, "groups units d"]], Any]
Upper = Callable[[Float[Tensor, " d"], Any], Float[Tensor, " groups"]]

_ROUNDING = 1e-5  # relative to the sum of absolute products


def check_bound(
    summarise: Summarise, upper: Upper, *, signed: bool = False, name: str = "The bound", width: int = 24
) -> None:
    """Raise AssertionError unless `upper(query, summarise(items))` is never below max_u <query, items[g, u]> of any group g.

    On random and on adversarial data: single entries, ranges of ten decades, equal rows, zeros; negative numbers only if `signed`.
    With it, selection at slack 1 finds the exact best, and lower slack opens no more groups.
    """
    for label, items, queries in _cases(signed, width):
        summary = summarise(items)
        for query in queries:
            products = items @ query
            truth = products.amax(1)
            bounds = upper(query, summary)
            require(bounds.shape == truth.shape, f"{name}: {tuple(bounds.shape)} bounds of {len(truth)} groups.")
            room = _ROUNDING * (items.abs() @ query.abs()).amax(1)
            low = bounds < truth - room
            if bool(low.any()):
                g = int(low.nonzero()[0])
                raise AssertionError(
                    f"{name} is below the truth on {label}: {float(bounds[g]):.6g} < {float(truth[g]):.6g}."
                )
            _check_selection(bounds + room, products, name)


def _check_selection(bounds: Tensor, products: Tensor, name: str) -> None:
    units, keep = products.shape[1], 3

    def group(g: int) -> tuple[Tensor, Tensor]:
        return torch.arange(g * units, (g + 1) * units), products[g]

    best = products.flatten().sort(descending=True, stable=True)
    opened = []
    for slack in (1.0, 0.7, 0.4):
        ids, values, seen = select_bounded(bounds, group, keep, slack=slack)
        opened.append(seen.opened)
        if slack == 1:
            require(torch.equal(values, best.values[:keep]), f"{name}: slack 1 does not find the best.")
            require(torch.equal(ids, best.indices[:keep]), f"{name}: slack 1 breaks ties otherwise than by id.")
    require(opened == sorted(opened, reverse=True), f"{name}: less slack opens more groups, {opened}.")


def _cases(signed: bool, d: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    sign = (lambda x: x * (torch.randint(0, 2, x.shape, generator=draw) * 2 - 1)) if signed else (lambda x: x)
    rand = lambda *shape: torch.rand(*shape, generator=draw)  # noqa: E731
    sparse = lambda *shape: rand(*shape) * (rand(*shape) < 0.2)  # noqa: E731
    queries = torch.cat([sign(sparse(6, d)), torch.eye(d)[:3], torch.zeros(1, d), sign(torch.ones(1, d))])
    yield "random rows", sign(rand(7, 5, d)), queries
    yield "sparse rows", sign(sparse(7, 5, d)), queries
    yield "ranges of ten decades", sign(sparse(7, 5, d) * 10 ** (rand(7, 5, d) * 10 - 5)), queries
    yield "single entries", sign(torch.eye(d)[torch.randint(0, d, (7, 5), generator=draw)]), queries
    yield "equal rows", sign(rand(7, 1, d)).expand(7, 5, d).contiguous(), queries
    yield "zeros", torch.zeros(7, 5, d), queries
    one = torch.zeros(7, 5, d)
    one[3, 2, 1] = 1e-6
    yield "one tiny entry", one, queries
