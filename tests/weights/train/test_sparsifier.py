"""The sparsifier beside an optimiser: what it holds, when it changes, what it refuses."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, CheckpointError, MissingStatError, ModelError, PatternError
from sparseworks.core.schedule import Cubic
from sparseworks.scores import SynFlow
from sparseworks.stream import sites
from sparseworks.weights.train import DropGrow, Gradual, Straight


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def step(model, optimizer, sparsifier, seed=0):
    x = torch.randn(12, 16, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x) - x[:, :8].sin()).square().mean().backward()
    optimizer.step()
    return sparsifier.step()


def zeros(model, supports):
    return all(not s.read(model)[~supports[s.name].mask()].any() for s in sites(model))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_what_is_dropped_stays_zero_under_any_optimiser(kind):
    model = net()
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1)
    run = sw.Sparsifier(model, sw.method("magnitude", density=0.3), optimizer)
    before = run.supports
    for i in range(4):
        assert step(model, optimizer, run, i) is None
        assert zeros(model, before)
    assert run.finish() == before and run.density == pytest.approx(0.3, abs=1e-3)


def test_a_support_that_needs_data_is_pruned_at_the_start():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [torch.randn(12, 16)]
    run = sw.Sparsifier(
        model, sw.method("snip", density=0.3), optimizer, data=data, loss=lambda m, b: m(b).square().sum()
    )
    other = net()
    found = sw.prune(other, sw.method("snip", density=0.3), data, loss=lambda m, b: m(b).square().sum(), progress=False)
    assert run.supports == found.supports


def test_gradual_follows_its_schedule_and_nothing_comes_back():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = sw.method("gmp", density=0.1, train=Gradual(every=5, stop=0.5))
    run = sw.Sparsifier(model, method, optimizer, steps=40)
    kept, events = [run.supports], []
    for i in range(40):
        event = step(model, optimizer, run, i)
        if event:
            events.append(event)
            kept.append(run.supports)
    assert [e.step for e in events] == [5, 10, 15, 20]
    size = sum(s.size for s in sites(model))
    for event in events:
        share = Cubic()(event.step / 40 / 0.5)
        assert event.kept == pytest.approx(size * (1 - 0.9 * share), abs=2) and event.grown == 0
    assert all(b <= a for old, new in pairwise(kept) for a, b in zip(old.values(), new.values(), strict=True))


def test_rigl_grows_where_the_dense_gradient_is_largest_and_forgets_what_moved():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = sw.Sparsifier(model, sw.method("rigl", density=0.2, train=DropGrow(every=3)), optimizer, steps=12)
    first = run.supports
    step(model, optimizer, run, 0), step(model, optimizer, run, 1)
    assert run.supports == first
    weights = {s.name: s.read(model).clone() for s in sites(model)}
    event = step(model, optimizer, run, 2)
    assert event and event.dropped == event.grown > 0 and event.kept == sum(s.count for s in first.values())
    for site in sites(model):
        change = first[site.name].diff(run.supports[site.name])
        kept, grown = (first[site.name] & run.supports[site.name]).mask(), change.grown.mask()
        x = torch.randn(12, 16, generator=torch.Generator().manual_seed(2))
        assert not site.read(model)[grown].any()
        moments = site.view(optimizer.state[site.tensor(model)]["exp_avg"])
        assert not moments[grown].any() and not moments[change.dropped.mask()].any() and moments[kept].any()
        assert weights[site.name].shape == site.shape and x is not None
    gradient = {s.name: s.view(s.tensor(model).grad) for s in sites(model)}
    assert all(
        not gradient[s.name][~first[s.name].mask()].any() for s in sites(model)
    )  # clipped norms see kept weights


def test_straight_through_moves_dropped_weights_and_computes_without_them():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sw.Sparsifier(model, sw.method("ste", pattern="1:4"), optimizer)
    place = run.sites[0]
    before, mask = place.weight().clone(), place.mask.clone()
    assert torch.equal(place.site.read(model), before * mask)
    step(model, optimizer, run)
    assert (place.weight() != before)[~mask].any()
    assert torch.equal(place.site.read(model), place.weight() * place.mask)


def test_sr_ste_is_ste_with_a_decay_of_dropped_weights_only():
    ends = []
    for decay in (0.0, 0.5):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = sw.Sparsifier(model, sw.method("ste", pattern="1:4", train=Straight(decay=decay)), optimizer)
        place, mask = run.sites[0], run.sites[0].mask.clone()
        start = place.weight().clone()
        step(model, optimizer, run)
        ends.append(place.weight().clone())
    assert torch.allclose(ends[0] - ends[1], 0.1 * 0.5 * start * ~mask, atol=1e-6)


def test_gradients_that_gradscaler_finds_infinite_do_not_count():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sw.Sparsifier(model, sw.method("magnitude", density=0.5), optimizer)
    assert run.step() is None and run.done == 0
    step(model, optimizer, run)
    assert run.done == 1


def test_a_step_that_was_left_out_is_refused():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sw.Sparsifier(model, sw.method("magnitude", density=0.5), optimizer)
    model(torch.randn(2, 16)).sum().backward()
    optimizer.step()
    with pytest.raises(ModelError, match="after every step"):
        optimizer.step()


@pytest.mark.parametrize(
    "method, options, error, text",
    [
        (sw.method("rigl"), {}, BudgetError, "give `steps`"),
        (sw.method("rigl", allocate="owl"), {"steps": 9}, BudgetError, "does not gather"),
        (sw.method("gmp", score=SynFlow()), {"steps": 9}, MissingStatError, "SynapticFlow"),
        (sw.method("ste", pattern="1:5"), {}, PatternError, "divide"),
        (sw.method("magnitude"), {"skip": ["*"]}, ModelError, "Nothing to make sparse"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_changes(method, options, error, text):
    model = net()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=text):
        sw.Sparsifier(model, method, torch.optim.SGD(model.parameters(), lr=0.1), **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_optimiser_must_hold_the_sites():
    model = net()
    with pytest.raises(ModelError, match=r"does not hold '2\.weight'"):
        sw.Sparsifier(model, "magnitude", torch.optim.SGD(model[0].parameters(), lr=0.1))


def test_a_state_of_another_method_is_refused():
    model = net()
    run = sw.Sparsifier(model, "magnitude", torch.optim.SGD(model.parameters(), lr=0.1))
    state = run.state_dict()
    other = net()
    run = sw.Sparsifier(other, "magnitude_row", torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(CheckpointError, match="same arguments"):
        run.load_state_dict(state)
