"""Low rank: the optimum of its metric, and nothing below it."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError
from sparseworks.core.stats import Gram
from sparseworks.weights.factors import LowRank, Whitening


def test_the_metric_is_the_output_error(made_up):
    metric, change = Whitening.of(made_up.stats[Gram], damp=0.0), torch.randn(5, 64)
    assert torch.allclose(metric.into(change).square().sum(1), made_up.stats[Gram].error(change), rtol=1e-6)
    assert torch.allclose(metric.back(metric.into(change)), change.double(), atol=1e-8)


def test_whitened_is_the_best_of_its_rank(made_up):
    """Error = the sum of the squared singular values of W L that were cut off; no nearby pair of factors is better."""
    operator = sw.factorise_matrix(made_up.weight, sw.method("svd_llm", density=0.5), stats=made_up.stats)
    rank = operator.parts[0].out_features
    assert rank == 64 * 64 // 2 // 128
    values = torch.linalg.svdvals(Whitening.of(made_up.stats[Gram]).into(made_up.weight)).square()
    best = made_up.error(operator.dense())
    assert best == pytest.approx(float(values[rank:].sum() / values.sum()), rel=1e-3)
    for seed in range(5):
        torch.manual_seed(seed)
        left, right = (p.matrix + 0.01 * p.matrix.std() * torch.randn_like(p.matrix) for p in reversed(operator.parts))
        assert made_up.error(left @ right) > best
    plain = sw.factorise_matrix(made_up.weight, sw.method("svd", density=0.5))
    assert best < 0.7 * made_up.error(plain.dense())
    assert (plain.dense() - made_up.weight).norm() < 0.9 * (operator.dense() - made_up.weight).norm()


def test_the_rank_follows_the_budget():
    weight = torch.randn(48, 32)
    for density in (0.2, 0.5, 1.0):
        operator = sw.factorise_matrix(weight, sw.method("svd", density=density))
        rank = operator.parts[0].out_features
        assert operator.stored.numbers == rank * 80 <= density * weight.numel() < (rank + 1) * 80
    with pytest.raises(BudgetError, match="too few"):
        sw.factorise_matrix(weight, sw.method("svd", density=0.01))


def test_it_starts_at_random_for_training():
    made = [LowRank().start((48, 32), sw.method("svd"), 800, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(made[0].dense(), made[1].dense()) and not torch.equal(made[0].dense(), made[2].dense())
    assert made[0].stored.numbers == 800 and float(made[0].parts[0].matrix.detach().abs().max()) <= 32**-0.5
