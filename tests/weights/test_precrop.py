"""Layer densities as narrower layers; subnetworks drawn at random."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import BudgetError, MissingStatError
from sparseworks.stream import couplings, sites
from sparseworks.weights.precrop import precrop
from sparseworks.weights.subnetworks import random_search


def conv(a=32, b=32, c=64):
    return nn.Sequential(nn.Conv2d(1, a, 3), nn.ReLU(), nn.Conv2d(a, b, 3), nn.ReLU(), nn.Conv2d(b, c, 3), nn.ReLU(), nn.Flatten(), nn.Linear(c * 4, 10))  # fmt: skip


def parameters(model):
    return sum(s.size for s in sites(model))


def test_densities_of_a_narrow_net_give_its_widths_back():
    wide, narrow = conv(), conv(16, 8, 48)
    densities = {a.name: b.size / a.size for a, b in zip(sites(wide), sites(narrow), strict=True)}
    assert list(precrop(sites(wide), couplings(wide), densities).values()) == [16, 8, 48]


def test_no_more_parameters_than_the_densities_and_nearly_all_of_them():
    model = conv()
    densities = {s.name: p for s, p in zip(sites(model), (0.9, 0.1, 0.2, 0.5), strict=True)}
    cropped = conv(*precrop(sites(model), couplings(model), densities).values())
    budget = sum(densities[s.name] * s.size for s in sites(model))
    assert 0.85 * budget < parameters(cropped) <= budget
    with pytest.raises(MissingStatError):
        precrop(sites(model), couplings(model), {})
    with pytest.raises(BudgetError):
        precrop(sites(model), couplings(model), {s.name: 0.0 for s in sites(model)})


def test_a_search_keeps_the_best_draw():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    loss = lambda m: float(nn.functional.cross_entropy(m(x), y).detach())  # noqa: E731
    fresh = lambda m: [layer.reset_parameters() for layer in m if isinstance(layer, nn.Linear)]  # noqa: E731
    found = random_search(model, loss, keep=0.25, tries=30, fresh=fresh)
    assert found.loss == min(found.losses) < found.losses[0] and loss(model) == pytest.approx(found.loss)
    assert found.supports["2"].density == pytest.approx(1 / 16)
    with pytest.raises(BudgetError):
        random_search(nn.Linear(3, 3), loss)
