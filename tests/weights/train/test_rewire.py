"""Drop-and-grow where the dense weight never exists."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.weights.train import DropGrow, Rewire
from sparseworks.weights.train.rewire import draw, random_support


@given(st.integers(1, 60), st.data())
def test_draws_are_distinct_and_free(total, data):
    taken = torch.tensor(sorted(data.draw(st.sets(st.integers(0, total - 1)))), dtype=torch.long)
    count = data.draw(st.integers(0, total - len(taken)))
    drawn = draw(count, total, taken).tolist()
    assert len(set(drawn)) == count and not set(drawn) & set(taken.tolist()) and all(0 <= i < total for i in drawn)


def test_more_than_is_free_is_refused():
    with pytest.raises(BudgetError, match="3 of 2 free"):
        draw(3, 5, torch.tensor([0, 1, 2]))


def build(seed, density=0.05, hidden=128):
    torch.manual_seed(seed)
    shapes = [(hidden, 64), (hidden, hidden), (10, hidden)]
    a, b, c = (sw.TrainableSparseLinear.from_support(random_support(s, round(density * s[0] * s[1]))) for s in shapes)
    return nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), c)


def test_rigl_exchanges_the_smallest_for_the_largest_gradients(digits):
    model = build(0)
    layer, before = model[2], model[2].support().mask()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    method = sw.method("rigl", train=DropGrow(every=2))
    run = Rewire(model, method, optimizer, steps=20, candidates=1e9)
    dense = nn.Linear(128, 128)
    for i in range(2):
        optimizer.zero_grad()
        dense.weight.data, dense.bias.data = layer.dense_matrix().detach(), layer.bias.detach().clone()
        nn.functional.cross_entropy(model(digits.x[:64]), digits.y[:64]).backward()
        twin = nn.Sequential(model[0], model[1], dense, model[3], model[4])
        gradient = torch.autograd.grad(nn.functional.cross_entropy(twin(digits.x[:64]), digits.y[:64]), [dense.weight])[
            0
        ]
        optimizer.step()
        event = run.step()
        assert (event is not None) == (i == 1)
        if i == 0:
            assert torch.equal(layer.support().mask(), before)
    after = layer.support().mask()
    moved = int(before.sum() * method.schedule(0.1 / 0.75))
    assert int((after & ~before).sum()) == moved == int((before & ~after).sum()) > 0
    free = gradient.abs().masked_fill(before, -1)
    assert torch.equal((after & ~before).nonzero(), (free >= free.flatten().topk(moved).values[-1]).nonzero())
    assert not layer.dense_matrix()[after & ~before].any()
    row, column = layer.entries()
    assert not optimizer.state[layer.values]["exp_avg"][(after & ~before)[row, column]].any()


def test_growth_by_gradient_beats_random_growth_beats_a_fixed_support(digits):
    accuracy = {}
    for name in ("fixed", "set", "rigl"):
        found = []
        for seed in range(2):
            model = build(seed, 0.03)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            method = sw.method("set" if name == "fixed" else name)
            method = method.with_(train=replace(method.train, every=10))
            run = Rewire(model, method, optimizer, steps=200, seed=seed)
            kept, g = sum(s.count for s in run.supports.values()), torch.Generator().manual_seed(seed)
            for _ in range(200):
                some = torch.randint(1000, (64,), generator=g)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(digits.x[some]), digits.y[some]).backward()
                optimizer.step()
                if name != "fixed":
                    run.step()
            assert sum(s.count for s in run.finish().values()) == kept
            with torch.no_grad():
                found.append(float((model(digits.x_test).argmax(dim=1) == digits.y_test).float().mean()))
        accuracy[name] = sum(found) / len(found)
    assert accuracy["rigl"] > accuracy["set"] + 0.03, accuracy
    assert accuracy["set"] > accuracy["fixed"] + 0.01, accuracy


def test_no_tensor_of_the_size_of_the_weight_is_made(digits):
    """At 95 % sparsity nothing that training makes has as many entries as the middle layer has places."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, torch.Tensor):
                    self.seen = max(self.seen, t.numel())
            return out

    model = build(0, 0.05, hidden=512)
    optimizer = torch.optim.Adam(model.parameters())
    run = Rewire(model, sw.method("rigl", train=DropGrow(every=1)), optimizer, steps=10, candidates=2)
    with Largest() as mode:
        nn.functional.cross_entropy(model(digits.x[:16]), digits.y[:16]).backward()
        optimizer.step()
        assert run.step() is not None
    assert mode.seen < 0.2 * 512 * 512


@pytest.mark.parametrize(
    "build_model, method, options, error, text",
    [
        (lambda: nn.Linear(4, 4), "set", {}, ModelError, "no trainable sparse layer"),
        (lambda: build(0), "dst_ee", {}, BudgetError, "'set' or 'rigl'"),
        (lambda: build(0), "srigl", {}, BudgetError, "'set' or 'rigl'"),
        (lambda: build(0), "wanda", {}, BudgetError, "'set' or 'rigl'"),
        (lambda: build(0), "rigl", {"candidates": 0.5}, BudgetError, "candidates >= 1"),
    ],
)
def test_what_cannot_work_is_refused(build_model, method, options, error, text):
    model = build_model()
    with pytest.raises(error, match=text):
        Rewire(model, method, torch.optim.SGD(model.parameters(), lr=0.1), steps=10, **options)


def test_the_optimiser_must_hold_the_values():
    with pytest.raises(ModelError, match="after `trainable`"):
        Rewire(build(0), "set", torch.optim.SGD(build(1).parameters(), lr=0.1), steps=10)
