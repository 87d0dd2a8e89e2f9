"""Penalties beside each other and beside brute force; what every one must hold is in `testing.check_penalty`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks import testing
from sparseworks.core.errors import BudgetError
from sparseworks.solve.penalties import (
    L1,
    L21,
    MCP,
    SCAD,
    SLOPE,
    TV1D,
    ElasticNet,
    Group,
    L1Ball,
    LInf,
    LogSum,
    NonNegativeL1,
    Nuclear,
    WeightedL1,
)
from sparseworks.solve.penalty import Penalty, project_l1_ball

V = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
LASSO = L1(0.7)


@pytest.mark.parametrize(
    "same",
    [
        WeightedL1((1.0,) * 6, 0.7), ElasticNet(0.7, 1.0), Group(1, 0.7), Group((1,) * 6, 0.7), L21(1, 0.7), SLOPE((1.0,), 0.7),
        MCP(0.7, 1e12), SCAD(0.7, 1e12), LogSum(0.7, 1e7),
    ],
    ids=lambda p: type(p).__name__,
)  # fmt: skip
def test_what_degenerates_to_the_lasso(same):
    for step in (0.4, 1.0):
        assert torch.allclose(same.prox(V, step), LASSO.prox(V, step), atol=1e-6)
    assert torch.allclose(same.value(V), LASSO.value(V), rtol=1e-3)
    if not isinstance(same, SLOPE):  # whose violation is that of the fixed point
        assert torch.allclose(same.violation(V, V.flip(0)), LASSO.violation(V, V.flip(0)), atol=1e-6)
    assert torch.allclose(same.largest(V), LASSO.largest(V))


def test_groups_of_uneven_size_are_the_even_ones_where_they_are_even():
    assert torch.equal(Group((2, 2, 2)).prox(V, 1.0), Group(2).prox(V, 1.0))
    assert torch.allclose(Group((2, 2, 2)).value(V), Group(2).value(V))
    assert (Group((1, 5), 4.5).prox(V, 1.0)[:, 1:] == 0).all(1).any()


def test_a_matrix_with_one_column_has_one_singular_value_its_length():
    assert torch.allclose(Nuclear(1).prox(V, 1.0), Group(6).prox(V, 1.0))


def test_the_maximum_is_what_the_l1_ball_leaves():
    left = LInf(1.0).prox(V, 1.5)
    assert torch.allclose(left + L1Ball(1.5).prox(V, 1.0), V)
    top = left.abs().amax(1, keepdim=True)
    assert bool(((left.abs() - top).abs() < 1e-12).sum(1).ge(1).all())


def test_projection_on_the_l1_ball_keeps_what_is_inside_and_ends_on_the_sphere():
    assert torch.equal(project_l1_ball(V, 1e3), V)
    assert torch.allclose(project_l1_ball(V, 2.0).abs().sum(1), torch.full((8,), 2.0, dtype=V.dtype))
    assert torch.equal(project_l1_ball(V, 0.0), torch.zeros_like(V))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(0.01, 3))
def test_total_variation_leaves_a_dual_that_says_it_is_optimal(values, weight):
    y = torch.tensor(values, dtype=torch.float64)
    z = TV1D(weight).prox(y, 1.0)
    dual = (y - z).cumsum(
        0
    )  # y - z = D' p, so that the running sums are -p, which lie in the tube and touch it at jumps
    assert abs(float(dual[-1])) < 1e-8
    assert float(dual.abs().max()) <= weight + 1e-8
    jump = z.diff()
    touching = -torch.sign(jump) * weight
    assert bool(((dual[:-1] - touching).abs()[jump.abs() > 1e-7] < 1e-6).all())


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(0.01, 3))
def test_slope_keeps_the_order_of_sizes_and_pools_ties(values, step):
    v = torch.tensor(values, dtype=torch.float64)
    z = SLOPE.example().prox(v, step)
    order = v.abs().argsort(descending=True)
    assert bool((z.abs()[order].diff() <= 1e-12).all())
    assert bool((z * v >= 0).all())


def test_slope_weights_of_benjamini_and_hochberg_fall_and_rising_ones_are_refused():
    assert testing.check_penalty(SLOPE.benjamini_hochberg(6)) is None
    with pytest.raises(BudgetError, match="fall"):
        SLOPE((1.0, 2.0))


def test_no_shrinkage_of_what_is_large():
    large = torch.tensor([[10.0, -12.0]])
    assert torch.equal(MCP(1.0, 3.0).prox(large, 1.0), large)
    assert torch.equal(SCAD(1.0).prox(large, 1.0), large)
    assert float((LASSO.prox(large, 1.0) - large).abs().min()) > 0.6


def test_negative_codes_cost_infinity_where_they_are_forbidden():
    assert NonNegativeL1(0.5).value(torch.tensor([1.0, -0.1])) == torch.inf
    assert NonNegativeL1(0.5).value(torch.tensor([1.0, 3.0])) == 2.0


def test_the_suite_sees_a_wrong_proximal_map():
    class Shrinking(L1):
        def prox(self, z, step):
            return super().prox(z, step) * 0.99

    with pytest.raises(AssertionError, match=r"better point|not the minimiser"):
        testing.check_penalty(Shrinking(0.5))


def test_the_suite_sees_a_wrong_violation_and_a_wrong_largest():
    class Blind(L1):
        def violation(self, z, gradient):
            return Penalty.violation(self, z, gradient) * 0

    class Early(L1):
        def largest(self, gradient):
            return super().largest(gradient) * 0.9

    with pytest.raises(AssertionError, match="no violation"):
        testing.check_penalty(Blind(0.5))
    with pytest.raises(AssertionError):
        testing.check_penalty(Early(0.5))
