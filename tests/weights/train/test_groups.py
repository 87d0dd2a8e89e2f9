"""G2GNet: matched groups of neurons, and growth between neurons that fire together."""

from __future__ import annotations

import torch

import sparseworks as sw
from sparseworks.core.stats import Stats
from sparseworks.scores import Modular


def test_blocks_are_dense_and_the_rest_is_random(fit):
    support = fit(sw.method("g2g", density=0.4), steps=1).supports["2"]
    block = Modular()(torch.zeros(support.shape), Stats()) >= 1
    mask = support.mask()
    assert mask[block].all() and support.count == round(0.4 * support.size)
    assert 0.1 < mask[~block].float().mean() < 0.3
