from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import sparseworks as sw
from sparseworks.codes.numerics.kronecker import KroneckerProjection
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError


def problem(n=6, m=30, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(m, n * n, generator=g, dtype=torch.float64)
    w = torch.randn(n, n, generator=g, dtype=torch.float64)
    return a, w @ w.mT + n * torch.eye(n, dtype=torch.float64), g


def recomputed(a, w):
    values, vectors = torch.linalg.eigh(w)
    root = (vectors * values.sqrt()) @ vectors.mT
    b = a @ torch.kron(root, root)
    return b.mT @ torch.linalg.solve(b @ b.mT, b)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 2), st.sampled_from([-0.5, 1.0]))
def test_updates_equal_the_projection_computed_anew(seed, rank, sign):
    a, w, g = problem(seed=seed)
    held = sw.method("kron_projection")(a, w, batch=100)
    for _ in range(3):
        u = torch.randn(6, rank, generator=g, dtype=torch.float64)
        held.update(u, sign * torch.eye(rank, dtype=torch.float64) / 3)
        w = w + sign / 3 * u @ u.mT
        h = torch.randn(36, generator=g, dtype=torch.float64)
        assert torch.allclose(held(h), recomputed(a, w) @ h, atol=1e-8)


def test_small_changes_are_followed_without_a_new_factor_and_batches_end():
    a, w, g = problem()
    held = KroneckerProjection(a, w, batch=3)
    factored = []
    real = held._factor
    held._factor = lambda: (factored.append(held.changes), real())[1]  # type: ignore[method-assign]
    for _ in range(4):
        held.update(torch.randn(6, 1, generator=g, dtype=torch.float64))
    assert factored == [3] and held.changes == 1


def test_a_change_costs_a_part_of_the_products_of_a_new_factor():
    a, w, g = problem(16, 220)
    held = KroneckerProjection(a, w, batch=100)
    with FlopCounterMode(display=False) as update:
        held.update(torch.randn(16, 1, generator=g, dtype=torch.float64))
    assert held.changes == 1
    with FlopCounterMode(display=False) as anew:
        held._factor()  # and its Cholesky factor is not even counted
    assert 2 * update.get_total_flops() < anew.get_total_flops()


def test_it_projects():
    a, w, g = problem()
    held = KroneckerProjection(a, w)
    held.update(torch.randn(6, 1, generator=g, dtype=torch.float64))
    h = torch.randn(36, generator=g, dtype=torch.float64)
    once = held(h)
    assert torch.allclose(held(once), once) and not torch.allclose(once, h, atol=1e-3)


def test_bad_operands_are_refused_and_leave_everything_as_it_was():
    a, w, _ = problem()
    with pytest.raises(ShapeError):
        KroneckerProjection(a[:, :-1], w)
    with pytest.raises(NonFiniteError):
        KroneckerProjection(a * torch.nan, w)
    with pytest.raises(BudgetError):
        KroneckerProjection(a, -w)
    with pytest.raises(BudgetError):
        KroneckerProjection(torch.cat([a[:2], a[:1]]) * 0, w)
    with pytest.raises(BudgetError):
        KroneckerProjection(a, w, 0)
    held = KroneckerProjection(a, w)
    with pytest.raises(ShapeError):
        held.update(torch.ones(5, 1))
    with pytest.raises(ShapeError):
        held(torch.ones(3))
    with pytest.raises(BudgetError):
        held.update(100 * torch.ones(6, 1, dtype=torch.float64), -torch.eye(1, dtype=torch.float64))
    assert torch.equal(held.w, w) and held.changes == 0
