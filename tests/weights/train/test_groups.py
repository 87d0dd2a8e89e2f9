"""G2GNet: matched groups of neurons, and growth between neurons that fire together."""

from __future__ import annotations

import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.stats import Stats
from sparseworks.scores import Hebbian, Modular
from sparseworks.weights.train import DropGrow


def test_blocks_are_dense_and_the_rest_is_random(fit):
    support = fit(sw.method("g2g", density=0.4), steps=1).supports["2"]
    block = Modular()(torch.zeros(support.shape), Stats()) >= 1
    mask = support.mask()
    assert mask[block].all() and abs(support.count - 0.4 * support.size) <= 1
    assert 0.25 < mask[~block].float().mean() < 0.4
    assert not fit(sw.method("random", density=0.4), steps=1).supports["2"].mask()[block].all()


def test_growth_takes_the_pairs_that_fire_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = sw.method("g2gnet", density=0.3, train=DropGrow(grow=Hebbian(), first=Modular(4), every=1))
    run = sw.Sparsifier(model, method, optimizer, steps=10)
    x, before = torch.randn(40, 20), run.sites[0].mask.clone()
    y = model(x)
    y.square().mean().backward()
    optimizer.step()
    event = run.step()
    correlation = torch.corrcoef(torch.cat([y.detach(), x], dim=1).T)[:16, 16:].abs()
    after = run.sites[0].mask
    assert event and event.grown > 5
    assert correlation[~after].max() <= correlation[after & ~before].min() + 1e-6
