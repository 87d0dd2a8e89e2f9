"""The law of sparse activations: planted coefficients come back, and the best sparsity is where its formula says."""

from __future__ import annotations

import random

import pytest

from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError
from sparseworks.evaluate import fit_activation_law
from sparseworks.evaluate.activation_law import ActivationLaw

PLANTED = ActivationLaw(e=1.8, b=200.0, c=20.0, beta=0.9, alpha=0.33)
RUNS = [(s, n) for s in (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8) for n in (1e6, 4e6, 2e7, 1e8)]


def test_planted_law_is_found_through_noise():
    draw = random.Random(0)
    runs = [(s, n, PLANTED(s, n) * (1 + 5e-4 * draw.gauss(0, 1))) for s, n in RUNS]
    found = fit_activation_law(*zip(*runs, strict=True), starts=48)
    assert found.error < 1e-3
    assert found.e == pytest.approx(1.8, rel=0.02) and found.alpha == pytest.approx(0.33, rel=0.05)
    assert found.beta == pytest.approx(0.9, rel=0.05)
    assert found.best_sparsity() == pytest.approx(PLANTED.best_sparsity(), abs=0.02)
    for s, n in ((0.3, 5e7), (0.65, 3e8)):
        assert found(s, n) == pytest.approx(PLANTED(s, n), rel=5e-3)


def test_best_sparsity_is_that_of_least_loss_at_fixed_activated_parameters():
    for law in (PLANTED, ActivationLaw(1.0, 500.0, 1.0, 2.0, 0.4)):
        best = law.best_sparsity()
        for activated in (1e6, 1e9):
            losses = {s / 100: law(s / 100, activated / (1 - s / 100)) for s in range(95)}
            assert best == pytest.approx(min(losses, key=losses.__getitem__), abs=0.011)


def test_runs_that_cannot_be_fitted():
    with pytest.raises(ShapeError):
        fit_activation_law([0.1], [1e6, 2e6], [2.0])
    with pytest.raises(NonFiniteError):
        fit_activation_law([0.1, 1.0], [1e6, 2e6], [2.0, 2.0])
    with pytest.raises(CalibrationError, match="size is the same"):
        fit_activation_law([0.1 * i for i in range(7)], [1e6] * 7, [2.0] * 7)
