from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.bandit import sparse_bandit
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError


def game(seed, actions=500, d=20, error=0.05):
    """Features of magnitude at most 1, two of which count, and errors of +-error by the seed."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(actions, d, generator=g, dtype=torch.float64) * 2 - 1
    theta = torch.zeros(d, dtype=torch.float64)
    theta[torch.randperm(d, generator=g)[:2]] = torch.tensor([0.8, -0.55], dtype=torch.float64)
    noise = error * (torch.rand(actions, generator=g) < 0.5).double().mul(2).sub(1)
    return x, x @ theta, x @ theta + noise


def test_an_almost_best_action_is_found_with_few_queries():
    for seed in range(8):
        x, truth, rewards = game(seed)
        asked = []
        found = sw.method("sparse_bandit")(
            x, lambda a, r=rewards, s=asked: s.append(a) or float(r[a]), 2, 0.05, resolution=0.1
        )
        assert truth[found.action] >= truth.max() - 4 * 0.05
        assert found.queries == len(set(asked)) <= 25
        # As many queries of random actions and least squares over all features do not get there.
        g = torch.Generator().manual_seed(seed)
        some = torch.randperm(len(x), generator=g)[: found.queries]
        fitted = torch.linalg.lstsq(x[some], rewards[some].unsqueeze(1), driver="gelsd").solution[:, 0]
        assert truth[(x @ fitted).argmax()] < truth[found.action]


def test_errors_along_what_does_not_count_mislead_least_squares_over_all_features_and_not_elimination():
    for seed in range(4):
        x, truth, _ = game(seed)
        theta = torch.linalg.lstsq(x, truth.unsqueeze(1)).solution[:, 0]
        away = torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sign()
        rewards = truth + 0.05 * torch.sign(x @ (away * (theta.abs() < 0.1)))
        found = sparse_bandit(x, lambda a, r=rewards: float(r[a]), 2, 0.05, resolution=0.1)
        assert truth[found.action] >= truth.max() - 4 * 0.05 and found.queries <= 25
        assert set(found.support) == set((theta.abs() >= 0.1).nonzero()[:, 0].tolist())
        fitted = torch.linalg.lstsq(x, rewards.unsqueeze(1)).solution[:, 0]  # of all 500 rewards
        assert float((x @ fitted - truth).abs().max()) > 2 * 0.05


def test_rewards_that_break_the_assumption_are_reported():
    x, _, _ = game(0, 50, 6)
    with pytest.raises(BudgetError, match="No hypothesis"):
        sparse_bandit(x, lambda a: -50.0, 1, 0.05)


def test_bad_operands_are_refused():
    x, _, _ = game(0, 50, 6)
    with pytest.raises(ShapeError):
        sparse_bandit(x[0], float, 1, 0.1)
    with pytest.raises(NonFiniteError):
        sparse_bandit(x * torch.nan, float, 1, 0.1)
    with pytest.raises(BudgetError):
        sparse_bandit(x, float, 7, 0.1)
    with pytest.raises(BudgetError, match="hypotheses"):
        sparse_bandit(x, float, 5, 0.01)
