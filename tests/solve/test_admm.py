from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError, MissingStatError
from sparseworks.core.pattern import Pattern
from sparseworks.core.select import select
from sparseworks.core.stats import Gram, Stats
from sparseworks.scores import InputNorm, Magnitude
from sparseworks.solve import ADMM
from sparseworks.solve.least_squares import least_squares

WANDA = Magnitude() * InputNorm()


def reference(weight, gram, keep, *, damp=0.1, rho=1.0, steps=20, ramp=15):
    """The published iteration for one threshold over the whole matrix, in the paper's transposed form."""
    norm = gram.matrix.diagonal().sqrt()
    xx = gram.matrix / norm / norm[:, None]
    xx = xx + damp * torch.eye(len(xx), dtype=xx.dtype)
    w = (weight.double() * norm).T
    xy, u = xx @ w, torch.zeros_like(w)
    inverse = torch.linalg.inv(xx + rho * torch.eye(len(xx), dtype=xx.dtype))
    for t in range(steps):
        if t < ramp:
            lost = w.numel() - keep
            n = keep + round(lost * (1 - (t + 1) / ramp) ** 3)
            best = (w + u).abs().flatten().argsort(descending=True)[:n]
            mask = torch.zeros(w.numel(), dtype=torch.bool).index_fill(0, best, True).view_as(w)
        z = (w + u) * mask
        u = u + w - z
        w = inverse @ (xy + rho * (z - u))
    return (((w + u) * mask).T / norm), mask.T


def test_equals_the_published_iteration(layer):
    weight, stats, _ = layer(10, 24)
    pattern = Pattern.parse("tensor")
    new, support = ADMM()(weight, stats, WANDA, pattern, 120)
    expected, mask = reference(weight, stats[Gram], 120)
    assert torch.equal(support.mask(), mask)
    torch.testing.assert_close(new.double(), expected, rtol=1e-3, atol=1e-5)


def test_values_come_near_least_squares_and_the_mask_beats_wanda(layer):
    weight, stats, _ = layer(64, 64)
    pattern = Pattern.parse("row")
    gram = stats[Gram]
    new, support = ADMM()(weight, stats, WANDA, pattern, 32)
    error = lambda w: float(gram.error(w - weight).sum())  # noqa: E731
    best = error(least_squares(weight, support, gram.damped(0.0)))
    assert best <= error(new) < 1.5 * best
    assert best < error(least_squares(weight, select(WANDA(weight, stats), pattern, 32), gram.damped(0.0)))


@pytest.mark.parametrize("wrong", [{"ramp": 0}, {"ramp": 30}, {"rho": 0.0}, {"damp": -1.0}])
def test_refuses_impossible_settings(wrong):
    with pytest.raises(BudgetError, match="admm needs"):
        ADMM(**wrong)


def test_needs_the_second_moments(layer):
    weight, _, _ = layer(4, 8)
    with pytest.raises(MissingStatError):
        ADMM()(weight, Stats(), Magnitude(), Pattern.parse("2:4"), None)
