from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError
from sparseworks.solve import omp


def problem(atoms=40, features=20, signals=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    d = torch.nn.functional.normalize(torch.randn(atoms, features, generator=g, dtype=torch.float64), dim=1)
    return d, torch.randn(signals, features, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("k", [0, 1, 2, 5, 12])
def test_equals_scikit_learn(k):
    d, y = problem()
    codes = omp(d, y, k)
    assert bool(((codes != 0).sum(dim=1) == k).all())
    if k:
        expected = np.asarray(orthogonal_mp(d.T.numpy(), y.T.numpy(), n_nonzero_coefs=k)).T
        np.testing.assert_allclose(codes.numpy(), expected, atol=1e-10)


def test_finds_a_planted_code_and_survives_repeated_atoms():
    d, _ = problem()
    d[7] = d[3]
    truth = torch.zeros(1, 40, dtype=torch.float64)
    truth[0, [3, 11]] = torch.tensor([2.0, -1.0], dtype=torch.float64)
    codes = omp(d, truth @ d, 4)
    torch.testing.assert_close(codes @ d, truth @ d)
    assert float(codes.abs().max()) < 10


def test_refuses_what_does_not_fit():
    d, y = problem()
    with pytest.raises(ShapeError, match="last axis"):
        omp(d, y[:, :5], 2)
    with pytest.raises(BudgetError, match="21 of 40"):
        omp(d, y, 21)
    with pytest.raises(NonFiniteError):
        omp(d, y * torch.nan, 2)
