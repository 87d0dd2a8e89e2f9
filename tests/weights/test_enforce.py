"""Supports are re-imposed after every step, whatever the optimiser remembers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.stream import sites
from sparseworks.weights import keep_support, prune
from sparseworks.weights.enforce import dropped_masks, impose

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def zeros_hold(model, supports) -> bool:
    return all(torch.all(s.read(model)[~supports[s.name].mask()] == 0) for s in sites(model))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_after_every_step(tower, batches, name):
    model = tower()
    supports = prune(model, "wanda", batches, progress=False).supports
    optimizer = OPTIMIZERS[name](model.parameters())
    handle = keep_support(optimizer, model, sites(model), supports)
    before = model.first.weight.detach().clone()
    for step in range(6):
        optimizer.zero_grad()
        model(batches[step % 3]).square().mean().backward()
        optimizer.step()
        assert zeros_hold(model, supports)
    assert not torch.equal(before, model.first.weight)
    handle.remove()
    optimizer.step()  # without the hook the zeros come back
    assert not zeros_hold(model, supports)


def test_also_once_at_the_start(tower):
    model = tower()
    supports = {"first": Support.empty((16, 16))}
    keep_support(torch.optim.SGD(model.parameters(), lr=0.1), model, sites(model), supports)
    assert model.first.weight.abs().sum() == 0 and model.last.weight.abs().sum() > 0


def test_masks_are_laid_out_like_the_parameter():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Conv2d(4, 6, 3))
    supports = prune(
        model, "random", sites=[s for s in sites(model) if "[k]" in s.name or s.kernel], progress=False
    ).supports
    masks = dropped_masks(model, sites(model), supports)
    attention = masks["0.in_proj_weight"]
    assert attention[:8].sum() == 0 == attention[16:].sum() and attention[8:16].sum() == 32
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        assert mask.shape == parameter.shape and torch.equal(mask, parameter == 0)


def test_gradients_of_dropped_entries(tower, batches):
    model = tower()
    supports = prune(model, "magnitude", progress=False).supports
    model(batches[0]).sum().backward()
    model.last.weight.grad = None
    impose(model, dropped_masks(model, sites(model), supports), gradients=True)
    assert torch.all(model.first.weight.grad[~supports["first"].mask()] == 0)
    assert model.first.weight.grad.abs().sum() > 0


def test_refusals(tower):
    model = tower()
    with pytest.raises(ModelError, match="'nowhere'"):
        dropped_masks(model, sites(model), {"nowhere": Support.empty((2, 2))})
    with pytest.raises(ShapeError, match="'first'"):
        dropped_masks(model, sites(model), {"first": Support.empty((2, 2))})
    assert sw.weights.keep_support is keep_support
