"""Sparse quadratics by blocks that are forests: each is minimised exactly, by messages from the leaves to the roots and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.codes.numerics.matrices import as_csr
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError


@dataclass(frozen=True)
class Forest:
    """Coordinates whose inner products among each other form trees.

    Attributes:
        nodes: the coordinates, by depth.
        parent: position among `nodes` of each one's parent; a root's own.
        levels: first position of each depth, and the number of nodes.
        diagonal: H_ii; link: H_i,parent, 0 of a root.
    """

    nodes: Int[Tensor, " block"]
    parent: Int[Tensor, " block"]
    levels: tuple[int, ...]
    diagonal: Float[Tensor, " block"]
    link: Float[Tensor, " block"]

    def solve(self, right: Float[Tensor, " block"]) -> Float[Tensor, " block"]:
        """H_bb^-1 right in O(block): Gaussian message passing, which on trees is elimination without fill."""
        d, r = self.diagonal.clone(), right.clone()
        depths = list(pairwise(self.levels))
        for first, last in reversed(depths[1:]):
            at, link = self.parent[first:last], self.link[first:last]
            share = link / d[first:last]
            d.index_add_(0, at, -share * link)
            r.index_add_(0, at, -share * r[first:last])
        x = r / d
        for first, last in depths[1:]:
            x[first:last] -= self.link[first:last] / d[first:last] * x[self.parent[first:last]]
        return x


@dataclass(frozen=True)
class Descended:
    """Where descent ended: z, block updates, and the largest entry of the gradient."""

    z: Float[Tensor, " n"]
    steps: int
    residual: float


def forests(h: Any) -> list[Forest]:
    """Induced forests of the graph of H (sparse CSR, symmetric) that cover it: each takes what closes no cycle in it.

    First of those that no forest has yet, then of all others: forests overlap, and the larger they are the fewer updates it takes.

    Args:
        h: a torch or scipy sparse matrix, or a dense one.

    Raises:
        ShapeError: not a square matrix, or not symmetric in structure and values (a triangle alone, say).
        BudgetError: a diagonal entry that is not above 0: H is not positive definite.
    """
    h = as_csr(h)
    if h.shape[0] != h.shape[1]:
        raise ShapeError(f"Forests are those of a square matrix, got {tuple(h.shape)}.")
    _check_symmetric(h)
    ptr, columns = h.crow_indices().tolist(), h.col_indices().tolist()
    near = [columns[a:b] for a, b in pairwise(ptr)]
    values = [dict(zip(near[i], h.values()[ptr[i] : ptr[i + 1]].tolist(), strict=True)) for i in range(len(near))]
    poor = [i for i, row in enumerate(values) if not row.get(i, 0.0) > 0]
    if poor:
        raise BudgetError(f"H must be positive definite; its diagonal is not above 0 at {poor[:3]}.")
    found, left = [], list(range(len(near)))
    while left:
        waiting = set(left)
        taken = _grown([*left, *(i for i in reversed(range(len(near))) if i not in waiting)], near)
        left = [i for i in left if i not in taken]
        found.append(_rooted(taken, values, h))
    return found


def _check_symmetric(h: Tensor) -> None:
    rows = torch.repeat_interleave(h.crow_indices().diff())
    here, there = rows * len(h) + h.col_indices(), h.col_indices() * len(h) + rows
    order, mirrored = here.argsort(), there.argsort()
    values, rounding = h.values(), 1e-7 * h.values().abs().sum() / max(len(h), 1)
    if not torch.equal(here[order], there[mirrored]) or not torch.allclose(
        values[order], values[mirrored], rtol=1e-5, atol=float(rounding)
    ):
        raise ShapeError("H is not symmetric: store both triangles, (H + H^T) / 2 where they differ by rounding.")


def _grown(candidates: list[int], near: list[list[int]]) -> dict[int, list[int]]:
    """Node -> neighbours of a maximal induced forest, in this order."""
    root: dict[int, int] = {}

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    taken: dict[int, list[int]] = {}
    for i in candidates:
        others = [j for j in near[i] if j in taken and j != i]
        trees = {find(j) for j in others}
        if len(trees) < len(others):
            continue  # it would close a cycle
        root[i] = i
        for tree in trees:
            root[tree] = i
        taken[i] = others
        for j in others:
            taken[j].append(i)
    return taken


def _rooted(edges: dict[int, list[int]], values: list[dict[int, float]], like: Tensor) -> Forest:
    """Breadth first from the first node of every tree, all trees side by side."""
    seen: set[int] = set()
    level: list[tuple[int, int]] = []
    for first in edges:
        if first not in seen:
            level.append((first, first))
            reached = [first]
            seen.add(first)
            while reached:
                reached = [j for i in reached for j in edges[i] if j not in seen and not seen.add(j)]
    order, place, levels = [], {}, [0]
    while level:
        for i, _ in level:
            place[i] = len(place)
        order += level
        levels.append(len(order))
        level = [(j, i) for i, parent in level for j in edges[i] if j != parent]
    link = [0.0 if i == p else values[i][p] for i, p in order]
    make = lambda numbers, dtype: torch.tensor(numbers, dtype=dtype, device=like.device)  # noqa: E731
    return Forest(
        make([i for i, _ in order], torch.long), make([place[p] for _, p in order], torch.long), tuple(levels),
        make([values[i][i] for i, _ in order], like.dtype), make(link, like.dtype),
    )  # fmt: skip


def forest_descent(
    h: Any,
    right: Float[Tensor, " n"],
    start: Float[Tensor, " n"] | None = None,
    *,
    blocks: list[Forest] | None = None,
    tolerance: float = 1e-8,
    iterations: int = 10_000,
) -> Descended:
    """argmin_z z H z / 2 - <right, z>, H sparse and positive definite, by exact updates of the forest with the largest gradient.

    An update costs O(block) however large the block is, so that a few blocks cover everything; blocks of independent coordinates
    (red and black) are the forests without edges.

    Args:
        h: symmetric; a torch or scipy sparse matrix, or a dense one.
        right: computed in float64, whatever its type.
        blocks: forests that cover the coordinates; None: `forests(h)`, which depend on H alone.
        tolerance: largest entry of the gradient, over that of `right`.
        iterations: block updates.

    Raises:
        ShapeError, BudgetError: as `forests`; a right-hand side or a start of another length.
        NonFiniteError: one of them holds NaN or infinity, or the updates diverge since H is not positive definite.

    Source: Nutini, Laradji and Schmidt, 2017, arXiv 1712.08859, section on tree-structured blocks; greedy choice by ||grad_b||.
    """
    h = as_csr(h)
    blocks = forests(h) if blocks is None else blocks
    right = right.double()
    if right.shape != h.shape[:1]:
        raise ShapeError(f"H is {tuple(h.shape)}, the right-hand side {tuple(right.shape)}.")
    z = torch.zeros_like(right) if start is None else start.double().clone()
    if z.shape != right.shape:
        raise ShapeError(f"The start has shape {tuple(z.shape)}, the right-hand side {tuple(right.shape)}.")
    if not bool(torch.isfinite(torch.cat([z, right])).all()):
        raise NonFiniteError("The right-hand side or the start holds NaN or infinity.")
    goal, steps = tolerance * float(right.abs().max()), 0
    while True:
        gradient = h @ z - right
        worst = float(gradient.abs().max())
        if not math.isfinite(worst):
            raise NonFiniteError(f"The gradient is no longer finite after {steps} updates: H is not positive definite.")
        if worst <= goal or steps >= iterations:
            return Descended(z, steps, worst)
        block = max(blocks, key=lambda b: float(gradient[b.nodes].square().sum()))
        z[block.nodes] -= block.solve(gradient[block.nodes])
        steps += 1
