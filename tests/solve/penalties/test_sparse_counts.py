"""Hard, CEL0 and half thresholds: equal to brute force, and in the right order of the penalties they belong to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.solve.penalties import CEL0, L0, Half

PENALTIES = [L0(0.7), CEL0(0.7), CEL0(0.5, norm=1.6), CEL0(0.5, norm=0.4), Half(0.6)]
GRID = torch.cat([torch.linspace(-6, 6, 24_001, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]).unsqueeze(1)


def objective(penalty, u, v, step):
    return (u - v).square().sum(-1) / 2 + step * penalty.value(u)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@settings(max_examples=25)
@given(v=st.floats(-5, 5), step=st.floats(0.05, 3))
def test_prox_is_the_minimum_of_brute_force(penalty, v, step):
    point = torch.tensor([[v]], dtype=torch.float64)
    best = objective(penalty, GRID, point, step).min()
    ours = penalty.prox(point, step)
    assert float(objective(penalty, ours, point, step)) <= float(best) + 1e-9
    whole = torch.complex(point * 0.6, point * 0.8)
    torch.testing.assert_close(penalty.prox(whole, step).abs(), ours.abs())


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_the_result_of_prox_violates_nothing_and_zero_is_kept_from_the_largest_factor_on(penalty):
    v = torch.linspace(-4, 4, 401, dtype=torch.float64).unsqueeze(0)
    z = penalty.prox(v, 1.0)
    assert float(penalty.violation(z, z - v).max()) < 1e-12
    assert float(penalty.violation(torch.full_like(z, 1.0), torch.full_like(z, 9.0)).min()) > 1
    gradient, small = torch.tensor([[0.3, -2.0]], dtype=torch.float64), 1e-3
    factor = float(penalty.largest(gradient))
    assert not bool(penalty.prox(-small * gradient, small * factor * 1.001).any())
    if isinstance(penalty, CEL0):  # the only one of the three with a finite slope at 0
        assert bool(penalty.prox(-small * gradient, small * factor * 0.999).any())


def test_steps_may_differ_by_row_and_float32_stays():
    v = torch.randn(3, 8)
    step = torch.tensor([[0.1], [0.5], [2.0]])
    for penalty in PENALTIES:
        together = penalty.prox(v, step)
        assert together.dtype == torch.float32
        for i in range(3):
            torch.testing.assert_close(together[i], penalty.prox(v[i], float(step[i])))


def test_cel0_touches_l0_beyond_its_knee_and_lies_below_before_it():
    z = torch.linspace(-3, 3, 301, dtype=torch.float64).unsqueeze(1)
    relaxed, count = CEL0(0.7).value(z), L0(0.7).value(z)
    assert bool((relaxed <= count + 1e-12).all())
    beyond = z.squeeze(1).abs() >= 1.4**0.5
    torch.testing.assert_close(relaxed[beyond], count[beyond])
