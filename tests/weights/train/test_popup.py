"""Edge-Popup: weights stay as drawn, the subnetwork is found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError
from sparseworks.scores import Random
from sparseworks.stream import sites
from sparseworks.weights.train import EdgePopup


def task():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=g)
    return x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 128, bias=False), nn.ReLU(), nn.Linear(128, 128, bias=False), nn.ReLU(), nn.Linear(128, 4, bias=False))  # fmt: skip


def found(train, steps=150, lr=0.05):
    x, y = task()
    model = net()
    drawn = {s.name: s.read(model).clone() for s in sites(model)}
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    run = sw.Sparsifier(model, sw.method("edge_popup", density=0.3, train=train), optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        run.step()
    supports = run.finish()
    return float((model(x).argmax(1) == y).float().mean()), model, drawn, supports


def test_the_subnetwork_is_of_weights_as_they_were_drawn_and_inside_the_source():
    _, model, drawn, supports = found(EdgePopup(), steps=10)
    for s in sites(model):
        assert torch.equal(s.read(model), drawn[s.name] * supports[s.name].mask())
    _, _, _, inner = found(EdgePopup(within=0.3), steps=10)
    _, _, _, start = found(EdgePopup(within=0.3), steps=1, lr=1e-9)
    assert inner["2"].density == pytest.approx(0.3, abs=1e-3)
    assert inner["2"] == start["2"]  # as dense as its source: there is nothing to choose


def test_a_source_network_has_a_density():
    with pytest.raises(BudgetError):
        EdgePopup(within=0.0)


def test_the_subnetwork_found_is_far_better_than_random_ones_of_the_same_network(digits):
    """A network of one size of weight (signed, Kaiming) that is never trained, 30 % of it: about 94 % of held-out digits, random ones 20 %."""

    def drawn():
        torch.manual_seed(0)
        sizes = [(64, 128), (128, 128), (128, 10)]
        layers = [nn.Linear(*s, bias=False) for s in sizes]
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_(layer.weight.sign() * (2 / layer.in_features) ** 0.5)
        return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def accuracy(model):
        with torch.no_grad():
            return float((model(digits.x_test).argmax(1) == digits.y_test).float().mean())

    model, g = drawn(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = sw.Sparsifier(model, sw.method("edge_popup", density=0.3), optimizer)
    for _ in range(100):
        some = torch.randint(len(digits.x), (64,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(digits.x[some]), digits.y[some]).backward()
        optimizer.step()
        run.step()
    run.finish()
    others = []
    for seed in range(10):
        other = drawn()
        sw.prune(other, sw.method("random", density=0.3, score=Random(seed=seed)), progress=False)
        others.append(accuracy(other))
    assert accuracy(model) > max(others) + 0.5, (accuracy(model), others)
