"""Supports of tasks on shared weights: nothing is forgotten, weights are reused, growth and budgets tell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.scores import Gradient, Momentum, Unfired
from sparseworks.weights.settings import TaskDropGrow, Tasks


class Heads(nn.Module):
    """A body and one head a task."""

    def __init__(self, body: nn.Module, width: int, tasks: int = 5):
        super().__init__()
        self.body, self.heads = body, nn.ModuleList(nn.Linear(width, 2) for _ in range(tasks))

    def forward(self, x, task):
        return self.heads[task](self.body(x))


def perceptron() -> Heads:
    return Heads(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, 64), nn.ReLU()), 64)


def convolutions() -> Heads:
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()]
    layers += [
        nn.Conv2d(8, 16, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
    ]
    return Heads(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 64), nn.ReLU()), 64)


def learned(stream, build, seed=0, *, steps=30, tasks=5, close=True, optimizer=torch.optim.Adam, **changes):
    """The model after the stream, its tasks, and outputs on every test set right after its task."""
    torch.manual_seed(seed)
    model = build()
    optimizer = optimizer(model.parameters(), lr=3e-3)
    train = TaskDropGrow(every=5, **changes.pop("train", {}))
    method = sw.method("cl_dst", train=train, **changes)
    run = sw.Sparsifier(
        model, method, optimizer, steps=steps, skip=("heads.*", "body.2" if build is perceptron else ""), seed=seed
    )
    done, g, outputs = Tasks(run), torch.Generator().manual_seed(seed), []
    for k, part in enumerate(stream[:tasks]):
        if k:
            run.next_stage()
        optimizer.state.clear()
        model.train()
        for _ in range(steps):
            some = torch.randint(len(part.x), (32,), generator=g)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(part.x[some], k), part.y[some] - 2 * k).backward()
            optimizer.step()
            run.step()
        model.eval()
        if close:
            done.close()
        with torch.no_grad():
            outputs.append(model(part.x_test, k))
    return model, done, outputs


def accuracy(stream, model, done) -> float:
    """Mean over the tasks, each with its own support."""
    right = []
    for k, part in enumerate(stream):
        with done.at(k), torch.no_grad():
            right.append(float((model(part.x_test, k).argmax(1) == part.y_test - 2 * k).float().mean()))
    return sum(right) / len(right)


def test_nothing_is_forgotten_bit_for_bit(tasks):
    momentum = lambda p, lr: torch.optim.SGD(p, lr=0.03, momentum=0.9, weight_decay=0.01)  # noqa: E731
    model, done, outputs = learned(tasks, perceptron, optimizer=momentum, density=0.3)
    last = {n: t.clone() for n, t in model.state_dict().items()}
    for k, part in enumerate(tasks):
        with done.at(k), torch.no_grad():
            assert torch.equal(model(part.x_test, k), outputs[k])
            assert done.run.sites[0].site.read(model).count_nonzero() <= done.closed[k].supports["body.0"].count
    assert all(torch.equal(t, last[n]) for n, t in model.state_dict().items())
    for k in range(4):  # without their own supports the tasks are lost
        with torch.no_grad():
            assert not torch.allclose(model(tasks[k].x_test, k), outputs[k], atol=0.1)
    assert accuracy(tasks, model, done) > 0.9


def test_later_tasks_use_weights_of_earlier_ones_and_move_none(tasks):
    _, done, _ = learned(tasks, perceptron, tasks=3, density=0.3)
    first, second, third = (t.supports["body.0"] for t in done.closed)
    assert 0 < (first & second).count < second.count
    union = first | second | third
    assert torch.equal(done.run.frozen.marks["body.0.weight"], union.mask())
    kept = sum(len(p.mask.flatten()) for p in done.run.sites)
    assert 0.3 < done.density < 3 * 0.3 and kept == 2 * 64 * 64


def test_forgetting_without_closing_tasks(tasks):
    """The baseline: one model, trained on; its first task is gone."""
    model, done, outputs = learned(tasks, perceptron, close=False, density=0.3)
    part = tasks[0]
    with torch.no_grad():
        after = float((model(part.x_test, 0).argmax(1) == part.y_test).float().mean())
    before = float((outputs[0].argmax(1) == part.y_test).float().mean())
    assert before > 0.95 and after < before - 0.1 and not done.closed


def after(stream, **options) -> float:
    model, done, _ = learned(stream, convolutions, steps=35, **options)
    return accuracy(stream, model, done)


def test_at_low_sparsity_erdos_renyi_budgets_are_better_than_uniform_ones(tasks):
    """Paper and here: 95 % against 67 % at density 0.2 (deviations 1 and 7 points over four seeds)."""
    assert after(tasks, density=0.2) > after(tasks, density=0.2, allocate="uniform") + 0.1


def test_supports_that_grow_by_gradient_beat_those_that_stay(tasks):
    """92 % against 63 % at density 0.1 (deviations 4 and 11 points over three seeds)."""
    grown = after(tasks, density=0.1, train={"grow": Gradient()})
    assert grown > after(tasks, density=0.1, train={"stop": 0.0}) + 0.1


def test_unfired_entries_come_first():
    torch.manual_seed(0)
    model = nn.Linear(30, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = sw.method("cl_dst", density=0.2, train=TaskDropGrow(grow=Unfired(), every=1))
    run = sw.Sparsifier(model, method, optimizer, steps=50)
    ever = run.sites[0].mask.clone()
    for k in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 30, generator=torch.Generator().manual_seed(k))).square().sum().backward()
        optimizer.step()
        before = run.sites[0].mask.clone()
        run.step()
        grown = run.sites[0].mask & ~before
        left = int((~ever).sum())
        assert int((grown & ~ever).sum()) >= min(left, run.history[-1].grown)
        ever |= run.sites[0].mask
    run.next_stage()
    assert int(run.sites[0].state["supports"]) == 1 and torch.equal(run.sites[0].state["visits"] > 0, run.sites[0].mask)


def test_momentum_grows_where_averaged_gradients_agree():
    torch.manual_seed(0)
    model = nn.Linear(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = sw.Sparsifier(
        model,
        sw.method("cl_dst", density=0.5, train=TaskDropGrow(grow=Momentum(), average=True, every=4)),
        optimizer,
        steps=40,
    )
    m, v = torch.zeros(6, 8), torch.zeros(6, 8)
    for k in range(4):
        optimizer.zero_grad()
        model(torch.randn(4, 8, generator=torch.Generator().manual_seed(k))).square().sum().backward()
        m, v = m.lerp(model.weight.grad, 0.1), v.lerp(model.weight.grad.square(), 0.001)
        optimizer.step()
        if k < 3:
            run.step()
    place, before = run.sites[0], run.sites[0].mask.clone()
    scores = m.abs() / (v.sqrt() + 1e-8)
    run.step()
    dropped = run.history[-1].dropped
    stay = before & place.mask
    free = scores.masked_fill(stay, -1)
    grown = place.mask & ~before
    assert dropped == int(grown.sum()) > 0
    assert float(scores[grown].min()) >= float(free[~place.mask].max()) - 1e-6


def test_tasks_come_back_from_their_states(tasks):
    model, done, outputs = learned(tasks, perceptron, tasks=2, density=0.3)
    state, run_state = done.state_dict(), done.run.state_dict()
    torch.manual_seed(9)
    other = perceptron()
    other.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(other.parameters())
    run = sw.Sparsifier(other, done.run.method, optimizer, steps=30, skip=("heads.*", "body.2"), state=run_state)
    again = Tasks(run, state)
    other.eval()
    for k in range(2):
        with again.at(k), torch.no_grad():
            assert torch.equal(other(tasks[k].x_test, k), outputs[k])
    state[0]["supports"].pop("body.0")
    with pytest.raises(CheckpointError, match="other sites"):
        Tasks(run, state)


def test_what_tasks_refuse():
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ModelError, match="dense weights"):
        Tasks(sw.Sparsifier(model, "ste", optimizer, steps=10))
    done = Tasks(sw.Sparsifier(nn.Sequential(model), "set", torch.optim.SGD(model.parameters(), lr=0.1), steps=10))
    with pytest.raises(ModelError, match="not closed"), done.at(0):
        pass
    assert done.density == 0.0
