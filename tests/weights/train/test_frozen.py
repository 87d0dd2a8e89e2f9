"""Stages and frozen entries: what stands still, what comes back, what is counted anew, and what a saved run remembers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.weights.settings import TaskDropGrow
from sparseworks.weights.train import DropGrow, load_state, save_state


def start(method, steps=12, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    return model, optimizer, sw.Sparsifier(model, method, optimizer, steps=steps, **options)


def train(model, optimizer, run, steps, seed=0):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 12, generator=g)
        optimizer.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()
        run.step()


@pytest.mark.parametrize("name", ["set", "rigl", "random", "ste", "gmp"])
def test_frozen_entries_stand_still_under_every_regime(name):
    model, optimizer, run = start(sw.method(name, density=0.5))
    train(model, optimizer, run, 3)
    place = run.sites[0]
    mark = place.mask & (torch.rand(place.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
    before, rest, bias = (
        place.weight().clone(),
        place.weight()[~mark & place.mask].clone(),
        model[0].bias.detach().clone(),
    )
    run.freeze({place.name: mark, "0.bias": torch.arange(16) < 5})
    train(model, optimizer, run, 9)
    still = mark & place.mask
    assert still.any() and torch.equal(place.weight()[still], before[still])
    assert not torch.equal(place.weight()[~mark & place.mask][: len(rest)], rest)
    assert torch.equal(model[0].bias[:5], bias[:5]) and not torch.equal(model[0].bias[5:], bias[5:])


def test_frozen_entries_outside_the_support_are_hidden_and_come_back():
    model, optimizer, run = start(sw.method("random", density=0.5))
    train(model, optimizer, run, 2)
    place = run.sites[0]
    first, value = place.mask.clone(), model[0].weight.detach().clone()
    run.freeze({place.name: first})
    other = {p.name: ~p.mask for p in run.sites}
    run.keep(other)
    train(model, optimizer, run, 2)
    assert not model[0].weight[first].any() and torch.equal(run.frozen.values["0.weight"][first], value[first])
    run.keep({p.name: torch.ones_like(p.mask) for p in run.sites})
    run.next_stage()
    assert torch.equal(model[0].weight[first], value[first]) and run.stage == 1


def test_no_gradient_at_frozen_entries_so_that_they_draw_no_growth():
    method = sw.method("rigl", density=0.3, train=DropGrow(every=1, stop=1.0))
    model, optimizer, run = start(method, steps=100)
    place = run.sites[0]
    mark = ~place.mask & (torch.rand(place.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
    run.freeze({place.name: mark})
    model(torch.randn(8, 12)).square().sum().backward()
    optimizer.step()
    gradient, before = place.gradient().clone(), place.mask.clone()
    run.step()
    assert gradient[~mark & ~before].any() and not gradient[mark].any()
    assert run.history[-1].grown > 0 and not place.mask[mark].any()


def test_progress_counts_stages_anew():
    model, optimizer, run = start(sw.method("rigl", density=0.5), steps=4)
    train(model, optimizer, run, 3)
    assert run.progress == 0.75
    run.next_stage()
    assert run.progress == 0.0 and run.done == 3
    train(model, optimizer, run, 1)
    run.next_stage(steps=10)
    train(model, optimizer, run, 5)
    assert run.progress == 0.5 and run.stage == 2 and run.done == 9


def test_a_run_goes_on_from_a_file_after_stages_and_freezing(tmp_path):
    method = sw.method("cl_dst", density=0.4, train=TaskDropGrow(every=2))
    model, optimizer, run = start(method)
    train(model, optimizer, run, 6)
    run.freeze({p.name: p.mask for p in run.sites} | {"2.bias": torch.ones(4, dtype=torch.bool)})
    run.next_stage(steps=8)
    train(model, optimizer, run, 4, seed=1)
    save_state(tmp_path / "state", run)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, run, 4, seed=2)
    again, optimizer, other = start(method)
    again.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    other.load_state_dict(load_state(tmp_path / "state"))
    assert other.stage == 1 and other.progress == 0.5
    train(again, optimizer, other, 4, seed=2)
    assert other.supports == run.supports
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_what_cannot_be_frozen_is_named():
    model, _, run = start(sw.method("random", density=0.5))
    with pytest.raises(ModelError, match="no parameter 'nowhere'"):
        run.freeze({"nowhere": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ShapeError, match=r"0\.bias"):
        run.freeze({"0.bias": torch.ones(3, dtype=torch.bool)})
    assert not run.frozen.marks and model is run.model
