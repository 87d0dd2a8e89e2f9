"""Scores of sparse training against their formulas."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.core.patterns import unstructured
from sparseworks.core.select import select
from sparseworks.core.stats import Stats, WeightGradient
from sparseworks.scores import Exploration, Hebbian, Modular, Momentum, SignRank, Unfired, UnitActivity
from sparseworks.scores.training import Activity, Correlation, Visits, visit


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.2, 0.3]))
def test_the_share_dropped_by_sign_rank_is_that_of_each_sign(seed, share):
    weight = torch.randn(10, 12, generator=torch.Generator().manual_seed(seed)) + 0.7
    kept = select(SignRank()(weight, Stats()), unstructured(), round((1 - share) * 120)).mask()
    for own in (weight > 0, weight < 0):
        dropped = own & ~kept
        assert abs(int(dropped.sum()) - share * int(own.sum())) <= 1.5
        if bool(dropped.any()) and bool((own & kept).any()):
            assert weight[dropped].abs().max() <= weight[own & kept].abs().min()


def test_exploration_counts_the_supports_in_which_an_entry_took_part():
    state: dict = {}
    for kept in ([1, 0, 0], [1, 1, 0], [1, 0, 0]):
        visit(state, torch.tensor([kept], dtype=torch.bool))
    bonus = Exploration(eps=0.5)(torch.zeros(1, 3), Stats([Visits.of(state)]))
    assert torch.allclose(bonus, math.log(3) / torch.tensor([[3.5, 1.5, 0.5]]))


def test_hebbian_is_the_correlation_of_inputs_and_outputs():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=g)
    y = torch.cat([x[:, :1] * 3 + 5, -x[:, 1:2], torch.randn(50, 1, generator=g), torch.ones(50, 1)], dim=1)
    stat = Correlation(4, 4)
    for part in (slice(0, 20), slice(20, 50)):
        stat.update(torch.cat([x[part], y[part]], dim=1))
    found = Hebbian()(torch.zeros(4, 4), Stats([stat]))
    expected = torch.corrcoef(torch.cat([y[:, :3], x], dim=1).T)[:3, 3:].abs()
    assert torch.allclose(found[:3], expected, atol=1e-5)
    assert not found[3].any()  # a constant output correlates with nothing


def test_modular_fills_matched_groups_first():
    score = Modular(groups=3)(torch.zeros(7, 9), Stats())
    row, col = torch.arange(7) * 3 // 7, torch.arange(9) * 3 // 9
    assert torch.equal(score >= 1, row[:, None] == col[None])
    blocks = int((score >= 1).sum())
    kept = select(score, unstructured(), blocks + 4).mask()
    assert kept[score >= 1].all() and int(kept[score < 1].sum()) == 4


def test_unfired_entries_come_before_all_that_were_ever_kept():
    state: dict = {}
    visit(state, torch.tensor([[True, False, True, False]]))
    score = Unfired()(torch.zeros(1, 4), Stats([Visits.of(state)]))
    assert score[0, [1, 3]].min() >= 1 > score[0, [0, 2]].max() and len(score.unique()) == 4
    assert not torch.equal(score, Unfired(seed=1)(torch.zeros(1, 4), Stats([Visits.of(state)])))


def test_momentum_is_the_mean_gradient_over_its_root_mean_square():
    seen, gradients = WeightGradient(2, 3), torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    for gradient in gradients:
        seen.update(gradient)
    expected = gradients.mean(0).abs() / gradients.square().mean(0).sqrt()
    assert torch.allclose(Momentum()(torch.zeros(2, 3), Stats([seen])), expected, rtol=1e-5)


def test_activity_of_a_unit_is_what_passes_its_rectifier():
    y = torch.tensor([[1.0, -2.0], [3.0, 0.5], [-1.0, -1.0]])
    seen = Activity(2, 3)
    seen.update(y[:2])
    seen.update(y[2:])
    assert UnitActivity()(torch.zeros(2, 3), Stats([seen])).tolist() == [[4.0] * 3, [0.5] * 3]
