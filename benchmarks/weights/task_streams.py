"""Streams of tasks, the small networks that learn them, and their row of a table, for the benchmarks of continual learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from images import convolutional
from rows import Row, record_of
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.weights.settings import TrainingFlops, final_accuracy, forgetting


class Part(NamedTuple):
    x: Tensor
    y: Tensor


class Stream(NamedTuple):
    name: str
    tasks: list[Part]
    tests: list[Part]
    x: Tensor
    y: Tensor

    def net(self, *widths: int) -> nn.Sequential:
        """A perceptron of these widths after its input for vectors; six convolutions for images, whatever the widths."""
        if self.x.dim() == 2:
            return mlp(self.x.shape[1], *widths)
        return convolutional(self.x.shape[1], seed=int(torch.randint(2**31, ()))).to(self.x.device)


def stream_of(name: str, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> Stream:
    """Five tasks of two classes."""
    split = [[Part(a[b // 2 == k], b[b // 2 == k]) for k in range(5)] for a, b in ((x, y), (x_test, y_test))]
    return Stream(name, split[0], split[1], x, y)


def digits() -> Stream:
    """1200 images to train, 597 to test."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 8 - 0.6, torch.tensor(y)[order]
    return stream_of("digits", x[:1200], y[:1200], x[1200:], y[1200:])


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with rectifiers between them."""
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Heads(nn.Module):
    """A small convolutional network with one head a task."""

    def __init__(self, width: int = 8):
        super().__init__()
        layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
        for a, b, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)):
            layers += [nn.Conv2d(a, b, 3, padding=1, stride=stride), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 64), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(64, 2) for _ in range(5))

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.heads[task](self.body(x))


def batches(part: Part, steps: int, size: int, g: torch.Generator) -> Iterator[Part]:
    """`steps` random batches."""
    for _ in range(steps):
        some = torch.randint(len(part.x), (size,), generator=g)
        yield Part(part.x[some], part.y[some])


def row(
    label: str, method: Method | None, density: float, supports: Mapping[str, sw.Support], model: nn.Module, flops: TrainingFlops,
    accuracies: Tensor, more: Mapping[str, float], examples: int = 1200, **known: Any,
) -> Row:  # fmt: skip
    """Final accuracy over all tasks in per cent, and forgetting beside it; what a held support was chosen on came before training."""
    record = record_of(
        method, supports, model, metric="accuracy over tasks, %", value=100 * final_accuracy(accuracies), examples=examples,
        training_flops=flops.total, more={"forgetting": forgetting(accuracies), **more}, **known,
    )  # fmt: skip
    if method is not None and method.train is None:
        record = replace(record, start="sparse-to-sparse", when="before")
    return Row(label, density, record)
