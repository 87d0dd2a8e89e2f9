"""A small task on which sparse training can be told apart: handwritten digits, a multi-layer perceptron."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.weights.train import DropGrow, Explored


class Split(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


class Trained(NamedTuple):
    accuracy: float
    explored: float
    supports: dict
    model: nn.Module


@pytest.fixture(scope="session")
def digits() -> Split:
    """1000 handwritten digits to train, 797 to test, centred."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    return Split(x[:1000] - x.mean(0), y[:1000], x[1000:] - x.mean(0), y[1000:])


@pytest.fixture(scope="session")
def fit(digits):
    """`fit(method, seed)` trains a multi-layer perceptron, first weights scaled for the inputs kept; changes every 10 steps.

    Results are remembered.
    """
    known: dict = {}

    def run(method, seed=0, *, steps=200, hidden=128) -> Trained:
        key = (str(method and method.to_config()), seed, steps, hidden)
        if key not in known:
            known[key] = _fit(digits, method, seed, steps, hidden)
        return known[key]

    return run


def _fit(digits: Split, method, seed: int, steps: int, hidden: int) -> Trained:
    torch.manual_seed(seed)
    layers = [nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    if method.train is not None:
        changes = {"rescale": True} if isinstance(method.train, DropGrow) else {}
        method = method.with_(train=replace(method.train, every=10, **changes))
    run = sw.Sparsifier(model, method, optimizer, steps=steps, seed=seed)
    explored, g = Explored(run.supports), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        some = torch.randint(len(digits.x), (64,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(digits.x[some]), digits.y[some]).backward()
        optimizer.step()
        if run.step():
            explored.add(run.supports)
    supports = run.finish()
    with torch.no_grad():
        accuracy = float((model(digits.x_test).argmax(dim=1) == digits.y_test).float().mean())
    return Trained(accuracy, explored.share, supports, model)
