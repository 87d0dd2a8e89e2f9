"""Scores of groups against a loop over the units, and their mix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import MissingStatError
from sparseworks.scores.groups import GROUP_SCORES, MIXED, GroupSums, mixed
from sparseworks.stream import dependency_groups


@pytest.fixture
def stepped():
    """A sparsifier's sums after one step of SGD with momentum, and by hand (unit -> x, d) of the two couplings."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )
    nn.init.normal_(model[1].weight)
    x = torch.randn(5, 2, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = sw.Sparsifier(model, "group_magnitude", optimizer, steps=5, couplings=dependency_groups(model, x))
    model(x).square().sum().backward()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run.units.remember()
    optimizer.step()
    moved = {n: (before[n] - p.detach()) / 0.1 for n, p in model.named_parameters()}
    names = [["0.weight", "0.bias", "1.weight", "1.bias"], ["3.weight", "3.bias"]]
    by_hand = [
        tuple(torch.cat([of[n][i].flatten() for n in owned]).double() for of in (before, moved))
        for owned, units in zip(names, (4, 3), strict=True)
        for i in range(units)
    ]
    return run.units.sums(optimizer), by_hand, before["1.weight"]


FORMULAS = {
    "norm": lambda x, d: x.norm(),
    "mean_norm": lambda x, d: x.norm() / len(x),
    "cosine": lambda x, d: x @ d / x.norm() / d.norm() + 1,
    "taylor_first": lambda x, d: (x @ d).abs(),
    "taylor_second": lambda x, d: (x @ d) ** 2 / 2,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_every_score_is_its_formula(stepped, name):
    sums, by_hand, _ = stepped
    expected = torch.stack([FORMULAS[name](x, d) for x, d in by_hand])
    torch.testing.assert_close(GROUP_SCORES.get(name)(sums), expected, rtol=1e-4, atol=1e-6)


def test_the_mix_weighs_scores_of_unit_norm(stepped):
    sums, *_ = stepped
    parts = [GROUP_SCORES.get(n)(sums) for n in MIXED]
    torch.testing.assert_close(mixed(sums), sum(0.2 * s / s.norm() for s in parts))


def test_gamma_is_known_where_there_is_a_norm(stepped):
    sums, _, gamma = stepped
    found = GROUP_SCORES.get("gamma")(sums)
    assert found[:4].tolist() == pytest.approx(gamma.abs().tolist()) and torch.isinf(found[4:]).all()


def test_scores_of_the_direction_need_one():
    with pytest.raises(MissingStatError, match="direction of the optimiser"):
        mixed(GroupSums(torch.ones(3), torch.ones(3)))
