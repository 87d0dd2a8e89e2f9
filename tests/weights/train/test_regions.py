"""DynST: the regions of the input that matter are found while a forecaster trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import ShapeError
from sparseworks.weights.train import RegionGate

SIDE, TIMES = 8, 2


def field(seed):
    """Two times of a grid of which half the cells drive what is forecast."""
    g = torch.Generator().manual_seed(seed)
    informative = torch.zeros(SIDE * SIDE, dtype=torch.bool)
    informative[torch.randperm(SIDE * SIDE, generator=g)[: SIDE * SIDE // 2]] = True
    x = torch.randn(400, TIMES, SIDE, SIDE, generator=g)
    mix = torch.randn(6, TIMES, SIDE * SIDE, generator=g)
    return x, torch.tanh(torch.einsum("nts,kts->nk", x.flatten(2) * informative, mix) / SIDE), informative


def forecast(method, seed):
    """(share of informative regions kept, relative error on unseen fields)."""
    x, y, informative = field(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(
        RegionGate((SIDE, SIDE)), nn.Flatten(), nn.Linear(TIMES * SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, 6)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    if method.train is not None:
        method = method.with_(train=replace(method.train, every=10))
    run = sw.Sparsifier(model, method, optimizer, steps=300, sites=[model[0].site("0")], seed=seed)
    for _ in range(300):
        some = torch.randint(300, (64,))
        optimizer.zero_grad()
        (model(x[some]) - y[some]).square().mean().backward()
        optimizer.step()
        run.step()
    kept = run.finish()["0"].mask()[0]
    assert int(kept.sum()) == SIDE * SIDE // 2
    with torch.no_grad():
        error = float((model(x[300:]) - y[300:]).square().mean() / y[300:].var())
    return float(kept[informative].float().mean()), error


def test_informative_regions_are_recovered_and_random_ones_forecast_worse():
    for seed in range(2):
        recovered, error = forecast(sw.method("dynst", density=0.5), seed)
        by_chance, worse = forecast(sw.method("random", density=0.5), seed)
        assert recovered >= 0.8 > by_chance
        assert error < 0.6 * worse


def test_a_gate_takes_its_regions_only():
    gate = RegionGate((2, 3))
    assert gate(torch.ones(5, 4, 2, 3)).shape == (5, 4, 2, 3)
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        gate(torch.ones(5, 3, 2))
