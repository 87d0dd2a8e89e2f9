"""Proximal maps on groups: the envelope against a generic solver, what it leaves and what lasso takes, support recovery."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sparseworks.core.errors import BudgetError
from sparseworks.solve.groups import envelope_prox, lasso_prox


def by_solver(norms: np.ndarray, keep: int, d: np.ndarray) -> np.ndarray:
    """u that minimises sum_j |x_j|^2 d_j / (u_j + d_j) on 0 <= u <= 1, sum u <= k: the prox after minimising over x."""
    found = minimize(
        lambda u: float((norms**2 * d / (u + d)).sum()),
        np.full(len(norms), keep / len(norms)),
        jac=lambda u: -(norms**2) * d / (u + d) ** 2,
        bounds=[(0, 1)] * len(norms),
        constraints={"type": "ineq", "fun": lambda u: keep - u.sum(), "jac": lambda u: -np.ones_like(u)},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    return found.x / (found.x + d)


@pytest.mark.parametrize(("keep", "step"), [(1, 0.1), (3, 0.02), (3, 0.5), (5, 1.0), (7, 0.3)])
def test_the_prox_of_the_envelope_is_what_a_generic_solver_finds(keep, step):
    rng = np.random.default_rng(keep)
    norms, weights = rng.uniform(0.1, 2, 8), rng.uniform(0.5, 2, 8)
    ours = envelope_prox(torch.tensor(norms), keep, step, torch.tensor(weights)).numpy()
    d = step * weights
    value = lambda f: ((1 - f) * norms**2).sum() / 2  # noqa: E731
    assert ours == pytest.approx(by_solver(norms, keep, d), abs=5e-3)
    u = ours * d / (1 - ours)
    assert u.sum() == pytest.approx(keep, abs=1e-9) and u.min() >= 0 and u.max() <= 1 + 1e-12
    assert value(ours) <= value(by_solver(norms, keep, d)) * (1 + 1e-6)


def test_no_more_groups_than_may_stay_are_shrunk_like_a_ridge():
    factors = envelope_prox(torch.tensor([3.0, 0.0, 1.0]), 2, 0.25)
    assert factors.tolist() == pytest.approx([1 / 1.25, 0.0, 1 / 1.25])
    with pytest.raises(BudgetError, match="at least one group by a positive step, got 0"):
        envelope_prox(torch.ones(3), 0, 0.1)


def test_lasso_takes_the_same_length_from_all():
    assert lasso_prox(torch.tensor([4.0, 1.0, 0.1]), 0.5).tolist() == pytest.approx([0.875, 0.5, 0.0])


def regression(seed: int, groups: int = 20, true: int = 4, size: int = 5, samples: int = 80):
    """y = A x + noise with `true` of `groups` groups."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(samples, groups * size, generator=g, dtype=torch.float64)
    x = torch.zeros(groups, size, dtype=torch.float64)
    x[torch.randperm(groups, generator=g)[:true]] = torch.randn(true, size, generator=g, dtype=torch.float64)
    return a, x, a @ x.flatten() + 0.1 * torch.randn(samples, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_envelope_finds_the_groups_of_a_regression(seed):
    """k = 4 given: the four strongest groups are the true ones, all others together are next to nothing."""
    a, x, y = regression(seed)
    found, rate = torch.zeros_like(x), float(1 / torch.linalg.matrix_norm(a, 2) ** 2)
    for _ in range(300):
        z = found - rate * (a.T @ (a @ found.flatten() - y)).reshape(x.shape)
        found = z * envelope_prox(z.norm(dim=1), 4, rate).unsqueeze(1)
    norms, support = found.norm(dim=1), x.norm(dim=1) > 0
    assert norms[support].min() > 10 * norms[~support].max()
    assert (found - x).norm() < 0.06 * x.norm()
    ridge = torch.linalg.solve(a.T @ a + torch.eye(a.shape[1]), a.T @ y).reshape(x.shape)
    assert ridge.norm(dim=1)[~support].max() > 3 * norms[~support].max()
