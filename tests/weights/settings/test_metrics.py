"""Forgetting and transfer by hand, and FLOPs by counting products."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import ShapeError
from sparseworks.weights.settings import TrainingFlops, backward_transfer, final_accuracy, forgetting


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
    counter.close()
    model(torch.randn(3, 2, 5, 5))
    assert counter.dense == 3 * 2 * (3 * 25 * conv + 3 * linear) + 2 * (25 * conv + linear)
