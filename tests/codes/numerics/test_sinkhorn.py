from __future__ import annotations

import itertools

import pytest
import torch

from sparseworks.codes.numerics import sinkhorn
from sparseworks.codes.numerics.sinkhorn import sinkhorn_newton
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError


def clouds(n=120, m=120, seed=0):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.rand(n, 2, generator=g), torch.rand(m, 2, generator=g)
    cost = (a[:, None] - b[None]).square().sum(-1).double()
    return cost, torch.full((n,), 1 / n, dtype=torch.float64), torch.full((m,), 1 / m, dtype=torch.float64)


@pytest.mark.parametrize(("eta", "many"), [(200.0, 250), (800.0, 1000)])
def test_a_sparse_hessian_ends_in_a_few_steps_where_sinkhorn_needs_hundreds(eta, many, monkeypatch):
    cost, r, c = clouds(150, 150)
    stored, real = [], sinkhorn.as_csr
    monkeypatch.setattr(sinkhorn, "as_csr", lambda m: (made := real(m), stored.append(made.values().numel()))[0])
    found = sinkhorn_newton(cost, r, c, eta)
    assert found.errors[-1] <= 1e-12 and found.sinkhorn == 20 and len(found.errors) <= 20 + 20
    assert len(stored) == len(found.errors) - 20 and max(stored) <= 0.15 * cost.numel()  # of the plan, in the Hessian
    alone = sinkhorn_newton(cost, r, c, eta, warm=many, steps=0, tolerance=1e-8)
    assert alone.errors[-1] > 1e-8


def test_the_plan_is_the_entropic_optimum_and_does_not_depend_on_what_the_hessian_keeps():
    cost, r, c = clouds(40, 55, seed=1)
    plans = [sinkhorn_newton(cost, r, c, 60.0, density=d).plan for d in (0.3, 1.0)]
    long = sinkhorn_newton(cost, r, c, 60.0, warm=20000, steps=0).plan
    assert torch.allclose(plans[0], plans[1], atol=1e-12) and torch.allclose(plans[0], long, atol=1e-11)
    assert torch.allclose(plans[0].sum(0), c) and torch.allclose(plans[0].sum(1), r)


def test_single_precision_marginals_whose_sums_differ_by_rounding_are_met():
    cost, _, _ = clouds(30, 7)
    found = sinkhorn_newton(cost, torch.full((30,), 1 / 30), torch.full((7,), 1 / 7), 50.0, density=1.0)
    assert found.errors[-1] <= 1e-12


def test_the_dual_value_never_falls_in_newton():
    cost, r, c = clouds(30, 30, seed=2)
    value = lambda t, eta: float(-t.plan.sum() / eta + r @ t.x + c @ t.y)  # noqa: E731
    values = [value(sinkhorn_newton(cost, r, c, 300.0, warm=2, steps=s, tolerance=0.0), 300.0) for s in range(0, 12, 2)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))


def test_bad_operands_are_refused():
    cost, r, c = clouds(5, 6)
    for bad in ((cost, c, r, 1.0), (cost[0], r, c, 1.0)):
        with pytest.raises(ShapeError):
            sinkhorn_newton(*bad)
    with pytest.raises(BudgetError, match="positive"):
        sinkhorn_newton(cost, r - 0.2, c, 1.0)
    with pytest.raises(BudgetError):
        sinkhorn_newton(cost, r, 2 * c, 1.0)
    with pytest.raises(BudgetError):
        sinkhorn_newton(cost, r, c, -1.0)
    with pytest.raises(NonFiniteError):
        sinkhorn_newton(cost * torch.nan, r, c, 1.0)
