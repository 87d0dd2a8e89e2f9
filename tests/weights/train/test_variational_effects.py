"""Variational dropout against one cut by magnitude and fine-tuning, in equal steps from the same dense models, on digits."""

from __future__ import annotations

import copy
from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.weights.train import Hold, Variational

STEPS = 250


def train(digits, model: nn.Module, rate: float, steps: int, seed: int, method: Method | None = None):
    """Accuracy on the test images, and the density."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    run = sw.Sparsifier(model, method, optimizer, steps=steps) if method else None
    torch.manual_seed(seed)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - i / steps)
        at = torch.randint(len(digits.x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(digits.x[at]), digits.y[at]).backward()
        optimizer.step()
        if run:
            run.step()
    supports = run.finish().values() if run else ()
    density = sum(s.count for s in supports) / max(sum(s.size for s in supports), 1)
    model.eval()
    with torch.no_grad():
        return float((model(digits.x_test).argmax(1) == digits.y_test).float().mean()), density


@pytest.fixture(scope="module")
def found(digits):
    """Label -> accuracies of two seeds; variational dropout also at the 70 % at which magnitude is measured."""
    accuracies: dict[str, list[float]] = {"noise": [], "cut": [], "noise, 70 %": [], "cut, 70 %": [], "density": []}
    for seed in (0, 1):
        torch.manual_seed(seed)
        dense = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        train(digits, dense, 3e-3, 150, seed)

        def after(rate, method, seed=seed, dense=dense):
            return train(digits, copy.deepcopy(dense).train(), rate, STEPS, seed, method)

        noise, cut = (
            sw.method("variational_dropout", pattern="global", train=Variational(first=-6.0, warmup=0.3)),
            sw.method("magnitude_global", train=Hold()),
        )
        accuracy, density = after(2e-2, noise)
        accuracies["noise"].append(accuracy)
        accuracies["density"].append(density)
        accuracies["cut"].append(after(3e-2, cut.with_(density=density))[0])
        budget = noise.with_(density=0.3, train=Variational(first=-6.0, warmup=0.3, threshold=None))
        accuracies["noise, 70 %"].append(after(2e-2, budget)[0])
        accuracies["cut, 70 %"].append(after(1e-2, cut.with_(density=0.3))[0])
    return accuracies


def test_at_97_percent_it_is_more_accurate_than_magnitude(found):
    """Four seeds: 0.954 (0.949 to 0.959) against 0.823 (0.775 to 0.867), the rate the best of 1e-2, 2e-2, 3e-2 and 5e-2."""
    assert max(found["density"]) < 0.04
    assert min(found["noise"]) > max(found["cut"]) + 0.05


def test_at_70_percent_magnitude_is_more_accurate(found):
    """Four seeds: 0.973 (0.970 to 0.975) against 0.956 (0.950 to 0.962)."""
    assert mean(found["cut, 70 %"]) > mean(found["noise, 70 %"]) + 0.008
