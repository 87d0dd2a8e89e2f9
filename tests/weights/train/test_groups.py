"""G2GNet: matched groups of neurons, and growth between neurons that fire together."""

from __future__ import annotations

import torch

import sparseworks as sw
from sparseworks.core.stats import Stats
from sparseworks.scores import Hebbian, Modular, Random
from sparseworks.weights.train import DropGrow


def test_blocks_are_dense_and_the_rest_is_random(fit):
    support = fit(sw.method("g2g", density=0.4), steps=1).supports["2"]
    block = Modular()(torch.zeros(support.shape), Stats()) >= 1
    mask = support.mask()
    assert mask[block].all() and abs(support.count - 0.4 * support.size) <= 1
    assert 0.25 < mask[~block].float().mean() < 0.4
    assert not fit(sw.method("random", density=0.4), steps=1).supports["2"].mask()[block].all()


def test_growth_where_neurons_fire_together_beats_growth_at_random(fit):
    accuracy = {}
    for name, grow in (("hebbian", Hebbian()), ("random", Random())):
        method = sw.method("g2gnet", density=0.1, train=DropGrow(grow=grow, first=Modular()))
        accuracy[name] = sum(fit(method, seed).accuracy for seed in range(2)) / 2
    assert accuracy["hebbian"] > accuracy["random"] + 0.005, accuracy
