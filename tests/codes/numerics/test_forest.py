"""Blocks that are forests: what they cover, that messages solve them, and that few updates suffice on a lattice."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.numerics.forest import Forest, forest_descent, forests
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError


def lattice(side: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels spread over a square lattice with random weights: the Laplacian, and 1 on a twentieth of the nodes."""
    g = torch.Generator().manual_seed(seed)
    n = side * side
    node = torch.arange(n).view(side, side)
    pairs = torch.cat(
        [torch.stack([node[:, 1:], node[:, :-1]]).flatten(1), torch.stack([node[1:], node[:-1]]).flatten(1)], dim=1
    )
    w = torch.rand(pairs.shape[1], generator=g, dtype=torch.float64) + 0.1
    h = torch.zeros(n, n, dtype=torch.float64)
    h[pairs[0], pairs[1]] = h[pairs[1], pairs[0]] = -w
    h.diagonal().copy_(-h.sum(1))
    labelled = torch.randperm(n, generator=g)[: n // 20]
    h[labelled, labelled] += 1
    right = torch.zeros(n, dtype=torch.float64)
    right[labelled] = torch.sign(torch.randn(len(labelled), generator=g, dtype=torch.float64))
    return h, right


def independent(h: torch.Tensor, side: int) -> list[Forest]:
    """Red and black, or single nodes: forests without edges."""
    node = torch.arange(side * side)
    colour = (node // side + node % side) % 2
    parts = [(colour == c).nonzero()[:, 0] for c in (0, 1)]
    return [Forest(p, torch.arange(len(p)), (0, len(p)), h.diagonal()[p], torch.zeros(len(p), dtype=h.dtype)) for p in parts]  # fmt: skip


def test_forests_cover_every_coordinate_and_hold_no_cycle():
    h, _ = lattice(9)
    found = forests(h)
    assert torch.equal(torch.cat([f.nodes for f in found]).unique(), torch.arange(81))
    assert len(found) == 2 and min(len(f.nodes) for f in found) > 48
    for f in found:
        edges = int((h[f.nodes][:, f.nodes] != 0).sum() - len(f.nodes)) // 2
        roots = f.levels[1]
        assert edges == len(f.nodes) - roots  # a forest, and all of its edges are links
        assert bool((f.parent[roots:] < torch.arange(len(f.nodes))[roots:]).all())


def test_messages_solve_a_block_as_a_dense_solver_does():
    h, right = lattice(12, 1)
    for f in forests(h):
        dense = torch.linalg.solve(h[f.nodes][:, f.nodes], right[f.nodes])
        assert torch.allclose(f.solve(right[f.nodes]), dense, atol=1e-12)
    chain = torch.diag(torch.full((50,), 2.1)) - torch.diag(torch.ones(49), 1) - torch.diag(torch.ones(49), -1)
    (whole,) = forests(chain.double())
    found = forest_descent(chain.double(), torch.ones(50, dtype=torch.float64), blocks=[whole])
    assert found.steps == 1 and found.residual < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_forests_need_about_half_of_the_updates_of_red_and_black_nodes(seed):
    side = 14
    h, right = lattice(side, seed)
    sparse = h.to_sparse()
    trees = forest_descent(sparse, right, tolerance=1e-4)
    colours = forest_descent(sparse, right, blocks=independent(h, side), tolerance=1e-4)
    exact = torch.linalg.solve(h, right)
    assert torch.allclose(trees.z, exact, atol=0.05) and torch.allclose(colours.z, exact, atol=0.05)
    assert 1.7 * trees.steps < colours.steps
    assert forest_descent(sparse, right, exact, tolerance=1e-4).steps == 0


def test_the_method_is_registered_and_refuses_what_it_cannot():
    h, right = lattice(4)
    found = sw.method("forest_bcd", tolerance=1e-10)(h, right)
    assert torch.allclose(found.z, torch.linalg.solve(h, right))
    with pytest.raises(ShapeError, match="square"):
        forests(h[:3])
    with pytest.raises(ShapeError, match="right-hand side"):
        forest_descent(h, right[:3])
    with pytest.raises(ShapeError, match="not symmetric"):
        forests(h.triu())
    with pytest.raises(ShapeError, match="not symmetric"):
        forests(h + 0.1 * h.triu(1))
    assert len(forests(h * (1 + 1e-9 * torch.rand_like(h)))) == len(forests(h))  # rounding is no asymmetry
    with pytest.raises(ShapeError, match="start"):
        forest_descent(h, right, right[:3])
    with pytest.raises(NonFiniteError, match="right-hand side or the start"):
        forest_descent(h, right * torch.nan)
    indefinite, one = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double(), torch.ones(1, dtype=torch.float64)
    nodes = [Forest(torch.tensor([i]), torch.zeros(1, dtype=torch.long), (0, 1), one, 0 * one) for i in (0, 1)]
    with pytest.raises(NonFiniteError, match="not positive definite"):
        forest_descent(indefinite, torch.tensor([1.0, 2.0]), blocks=nodes)
    with pytest.raises(BudgetError, match="positive definite"):
        forests(h - 10 * torch.eye(16, dtype=h.dtype))
