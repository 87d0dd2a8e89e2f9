"""Scores of sparse training against their formulas."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.core.patterns import unstructured
from sparseworks.core.select import select
from sparseworks.core.stats import Stats
from sparseworks.scores import Exploration, Hebbian, Modular, SignRank
from sparseworks.scores.training import Correlation, Visits, visit


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
