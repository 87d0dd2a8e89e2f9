"""The law fitter: planted coefficients come back, outliers do not matter, intervals hold them."""

from __future__ import annotations

import itertools
import random

import pytest

from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError
from sparseworks.evaluate.laws import NAMES, SparseLaw, fit_law

PLANTED = SparseLaw(a_s=17.0, b_s=0.72, c_s=45.0, b_n=0.25, a_d=7e8, b_d=0.2, c=0.65, intervals={}, error=0.0)


def runs(noise: float, *, outliers: int = 0, seed: int = 0):
    """(S, N, D, L) on a grid of 4 x 7 x 7, the losses off by a factor e^N(0, noise), some of them by 1.3."""
    draw = random.Random(seed)
    grid = list(
        itertools.product((0, 0.5, 0.75, 0.875), (1e5 * 4**i for i in range(7)), (1e8 * 8**i for i in range(7)))
    )
    losses = [PLANTED(*run) * 2.718281828 ** draw.gauss(0, noise) for run in grid]
    for i in draw.sample(range(len(grid)), outliers):
        losses[i] *= 1.3
    return [*(list(v) for v in zip(*grid, strict=True)), losses]


def test_planted_coefficients_come_back_from_noisy_runs():
    law = fit_law(*runs(2e-4))
    for name in NAMES:
        assert getattr(law, name) == pytest.approx(getattr(PLANTED, name), rel=0.1), name
        low, high = law.intervals[name]
        assert low <= getattr(law, name) <= high and high / low < 1.5, name
    held = [law.intervals[n][0] <= getattr(PLANTED, n) <= law.intervals[n][1] for n in NAMES]
    assert sum(held) >= 5
    assert law.error < 4e-4


def test_outliers_hardly_move_the_fit():
    clean, dirty = fit_law(*runs(2e-4), bootstrap=0), fit_law(*runs(2e-4, outliers=8), bootstrap=0)
    for name in NAMES:
        assert getattr(dirty, name) == pytest.approx(getattr(clean, name), rel=0.15), name


def test_what_the_law_says():
    assert PLANTED.dense_equivalent(0.0, 1e7) == pytest.approx(1e7)
    equal = PLANTED.dense_equivalent(0.75, 1e7)
    assert equal > 1e7 and PLANTED(0.75, 1e7, 1e9) == pytest.approx(PLANTED(0.0, equal, 1e9))
    best = [PLANTED.best_sparsity(1e7, flops) for flops in (1e17, 1e19, 1e21)]
    assert best[0] <= best[1] <= best[2] and best[0] < best[2]


def test_refuses_runs_that_say_too_little():
    s, n, d, y = runs(0.0)
    with pytest.raises(ShapeError, match="one sparsity"):
        fit_law(s[:3], n, d, y)
    with pytest.raises(CalibrationError, match="vary all"):
        fit_law(s[:7], n[:7], d[:7], y[:7])
    with pytest.raises(CalibrationError, match="data is the same"):
        fit_law(s, n, [1e9] * len(d), y)
    with pytest.raises(NonFiniteError, match="sparsity in"):
        fit_law([1.0, *s[1:]], n, d, y)
