from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparseworks.solve.least_squares as module
from sparseworks.core.errors import NonFiniteError, ShapeError
from sparseworks.core.solver import masked
from sparseworks.core.stats import Gram
from sparseworks.core.support import Support
from sparseworks.solve.guard import keep_better, row_errors
from sparseworks.solve.least_squares import least_squares, subsystems


def random_support(rows, cols, density, seed):
    return Support.from_mask(torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < density)


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_equals_lstsq_row_by_row(layer, density):
    weight, _, x = layer(12, 24, tokens=200, dtype=torch.float64)
    x = x.double()
    support = random_support(12, 24, density, 1)
    new = least_squares(weight, support, x.T @ x / len(x))
    for r, kept in enumerate(support.mask()):
        expected = torch.zeros(24, dtype=torch.float64)
        if bool(kept.any()):
            expected[kept] = torch.linalg.lstsq(x[:, kept], x @ weight[r]).solution
        torch.testing.assert_close(new[r], expected, rtol=1e-6, atol=1e-8)


def test_batches_of_any_size_agree(layer, monkeypatch):
    weight, stats, _ = layer(20, 32, dtype=torch.float64)
    support, h = random_support(20, 32, 0.5, 2), stats[Gram].damped(1e-3)
    whole = least_squares(weight, support, h)
    monkeypatch.setattr(module, "_CHUNK", 1)
    torch.testing.assert_close(least_squares(weight, support, h), whole, rtol=1e-7, atol=1e-9)


def test_systems_too_hard_for_float32_are_solved_in_float64():
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(24, 24, generator=g, dtype=torch.float64))
    h = q @ torch.diag(torch.logspace(0, -9, 24, dtype=torch.float64)) @ q.T
    sets = torch.rand(6, 24, generator=g) < 0.7
    truth = torch.randn(6, 24, generator=g, dtype=torch.float64) * sets
    rhs = (truth @ h) * sets
    x = subsystems((h + h.T) / 2, sets, rhs)
    assert float(((x @ h) * sets - rhs).norm() / rhs.norm()) < 1e-6
    assert bool((x[~sets] == 0).all())


def test_singular_moments_still_give_a_minimum(layer):
    weight, _, x = layer(6, 24, tokens=8, dtype=torch.float64)
    x = x.double()
    support, h = random_support(6, 24, 0.6, 3), x.T @ x / len(x)
    new = least_squares(weight, support, h)
    assert bool(torch.isfinite(new).all())
    # more than 8 kept inputs meet 8 tokens exactly
    assert float(row_errors(new - weight, h).sum()) < 1e-8 * float(row_errors(weight, h).sum())


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 17),
    tokens=st.integers(1, 40),
    density=st.floats(0, 1),
    damp=st.sampled_from([0.0, 1e-3, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 10**6),
)
def test_never_raises_the_error(rows, cols, tokens, density, damp, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=g).to(dtype)
    gram = Gram(rows, cols)
    gram.update(torch.randn(tokens, cols, generator=g) * (torch.rand(cols, generator=g) < 0.8))
    support = random_support(rows, cols, density, seed)
    new = least_squares(weight, support, gram.damped(damp))
    assert new.dtype == dtype and bool((new[~support.mask()] == 0).all())
    before, after = gram.error(masked(weight, support) - weight), gram.error(new - weight)
    slack = 1e-9 if dtype == torch.float64 or damp == 0 else 1e-2  # rounding of kept weights against a damped optimum
    assert bool((after <= before * (1 + slack) + 1e-9).all())


def test_guard_takes_the_better_row_and_never_nan():
    weight, h = torch.ones(3, 2), torch.eye(2)
    proposed = torch.tensor([[1.0, 1.0], [5.0, 5.0], [torch.nan, 1.0]])
    fallback = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert keep_better(weight, proposed, fallback, h).tolist() == [[1, 1], [1, 0], [0, 1]]


def test_refuses_what_does_not_fit():
    weight, support = torch.ones(3, 4), Support.full((3, 4))
    with pytest.raises(ShapeError, match="moments of 4 x 4"):
        least_squares(weight, support, torch.eye(3))
    with pytest.raises(ShapeError, match="support covers"):
        least_squares(weight, Support.full((4, 4)), torch.eye(4))
    with pytest.raises(NonFiniteError):
        least_squares(weight * torch.inf, support, torch.eye(4))
