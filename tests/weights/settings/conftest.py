"""Streams of tasks from scikit-learn's digits, and rounds of clients that share them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sparseworks.evaluate import dirichlet_split
from sparseworks.weights.settings import Client, Server

CLIENTS, ROUNDS = 10, 12


class Part(NamedTuple):
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


@pytest.fixture(scope="session")
def digits() -> Part:
    """1200 images of 8 x 8 to train, 597 to test, centred and scaled."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 8 - 0.6, torch.tensor(y)[order]
    return Part(x[:1200], y[:1200], x[1200:], y[1200:])


@pytest.fixture(scope="session")
def tasks(digits) -> list[Part]:
    """Five tasks of two classes, 0 and 1 first; labels as they are."""
    found = []
    for k in range(5):
        at, at_test = digits.y // 2 == k, digits.y_test // 2 == k
        found.append(Part(digits.x[at], digits.y[at], digits.x_test[at_test], digits.y_test[at_test]))
    return found


# -- rounds of clients ---------------------------------------------------------------------------------------------


def _net(seed: int = 0, width: int = 64) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    for layer in (model[0], model[2]):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


def _train(client: Client, message, x, y, *, seed: int = 0, lr: float = 0.1, steps: int = 6, **options):
    """One client's part of a round."""
    optimizer = torch.optim.SGD(client.model.parameters(), lr=lr, **options)
    client.receive(message, optimizer, steps=steps)
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(len(x), (64,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(client.model(x[at]), y[at]).backward()
        optimizer.step()
    return client.reply(len(x))


def _shared_digits():
    """1000 handwritten digits to train, 797 to test."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 16 - 0.3, torch.tensor(y)[order]
    return x[:1000], y[:1000], x[1000:], y[1000:]


def _accuracy(digits, method, seed: int = 1) -> tuple[float, int]:
    """Of the global model after 12 rounds of ten clients whose classes are shared out by Dirichlet(0.5); and bytes received."""
    x, y, test_x, test_y = digits
    parts = dirichlet_split(y, CLIENTS, 0.5, least=20, seed=seed)
    scored = {"data": [(x[:256], y[:256])], "loss": lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])}
    server = Server(_net(seed), method, rounds=ROUNDS, seed=seed, **(scored if method.name == "snip" else {}))
    clients = [Client(_net()) for _ in parts]
    for t in range(ROUNDS):
        message, options = server.message(), {"lr": 0.1 * 0.998**t, "momentum": 0.9, "weight_decay": 5e-4}
        server.receive([_train(c, message, x[p], y[p], seed=t, **options) for c, p in zip(clients, parts, strict=True)])
    supports = server.finish()
    total = sum(s.size for s in supports.values())
    assert sum(s.count for s in supports.values()) == pytest.approx(method.budget.total({"": total}), abs=2)
    with torch.no_grad():
        return float((server.model(test_x).argmax(1) == test_y).float().mean()), server.received


@pytest.fixture(scope="session")
def net():
    """(seed, width) -> a perceptron of digits."""
    return _net


@pytest.fixture(scope="session")
def train():
    """A client's part of a round."""
    return _train


@pytest.fixture(scope="session")
def accuracy():
    """method -> accuracy and bytes received, see `_accuracy`."""
    return partial(_accuracy, _shared_digits())
