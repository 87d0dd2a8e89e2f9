"""Forgetting and transfer by hand, and FLOPs by counting products."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import ShapeError
from sparseworks.weights.settings import TrainingFlops, backward_transfer, final_accuracy, forgetting
from sparseworks.weights.train import DropGrow


def test_accuracies_of_a_stream():
    a = torch.tensor([[0.9, 0.0, 0.0], [0.8, 0.7, 0.0], [0.85, 0.5, 0.6]])
    assert final_accuracy(a) == pytest.approx((0.85 + 0.5 + 0.6) / 3)
    assert forgetting(a) == pytest.approx(((0.9 - 0.85) + (0.7 - 0.5)) / 2)
    assert backward_transfer(a) == pytest.approx(((0.85 - 0.9) + (0.5 - 0.7)) / 2)
    assert forgetting(a[:1, :1]) == 0.0
    with pytest.raises(ShapeError, match="tasks x tasks"):
        forgetting(a[:2])


def test_flops_are_those_of_the_kept_products():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sw.Sparsifier(model, sw.method("random", density=0.25), optimizer)
    counter = TrainingFlops(run, gradients=0.1)
    model(torch.randn(3, 2, 5, 5))
    conv, linear = 2 * 9 * 4, 4 * 25 * 6
    assert counter.dense == 3 * 2 * (3 * 25 * conv + 3 * linear)
    expected = 2 * (3 * 25 * (2 * round(0.25 * conv) + round(0.1 * conv)) + 3 * (2 * linear // 4 + round(0.1 * linear)))
    assert counter.total == expected
    with torch.no_grad():
        model(torch.randn(1, 2, 5, 5))
    assert counter.total == expected + 2 * (25 * round(0.25 * conv) + linear // 4)
    model.eval()(torch.randn(3, 2, 5, 5))
    counter.close()
    model.train()(torch.randn(3, 2, 5, 5))
    assert counter.dense == 3 * 2 * (3 * 25 * conv + 3 * linear) + 2 * (25 * conv + linear)


def test_flops_of_looking_for_entries_to_grow_are_those_of_a_dense_gradient():
    """RigL's own count: 3 f_S a step, 2 f_S + f_D where the support changes; layers that stay dense cost all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = sw.method("rigl", density=0.25, allocate="uniform", train=DropGrow(every=2))
    run, x, steps = sw.Sparsifier(model, method, optimizer, steps=8, skip=["0", "3"]), torch.randint(7, (5,)), 8
    counter = TrainingFlops(run)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        run.step()
    looks, size, kept = 3, 160, 40  # at the last of them too little is left to drop
    assert len(run.history) - 1 == looks - 1
    sparse = steps * 6 * 5 * kept + looks * 2 * 5 * (size - kept)
    assert counter.total == sparse + steps * 6 * 5 * 60
    assert counter.dense == steps * 6 * 5 * (size + 60)


def test_flops_of_a_model_without_a_run_are_dense():
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3))
    counter = TrainingFlops(model)
    model(torch.randn(4, 8))
    assert counter.total == counter.dense == 6 * 4 * 220
    run = sw.Sparsifier(model, sw.method("ste", pattern="2:4"), torch.optim.SGD(model.parameters(), lr=0.1), skip=["2"])
    straight = TrainingFlops(run, gradients=1.0)
    model(torch.randn(4, 8))
    assert straight.total == 2 * 4 * (80 + 80 + 160) + 6 * 4 * 60
