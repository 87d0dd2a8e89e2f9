"""How accurate is training at a fixed number of weights: static, SET, RigL, DST-EE, SRigL, GraNet, and dense? Three seeds a cell.

The layout is that of the tables of RigL and DST-EE: methods x sparsities, mean and standard deviation, and the share of weights
that ever took part. First weights are scaled for the inputs that are kept (Evci et al., 2022). A perceptron (784-300-100-10) on Fashion-MNIST from an `.npz` with `train_images`, `train_labels`,
`test_images`, `test_labels`; without `--data` on scikit-learn's digits.

    python benchmarks/weights/dynamic.py --data fashion_mnist.npz --threads 1 --json dynamic
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments
from rows import Row, Rows, record_of

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.weights.settings import TrainingFlops
from sparseworks.weights.train import DropGrow, Explored

METHODS = ("static", "set", "rigl", "dst_ee", "srigl", "granet")
SPARSITIES = (0.9, 0.95, 0.98)
BATCH = 64


class Task(NamedTuple):
    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    widths: tuple[int, ...]


def fashion(path: Path) -> Task:
    """Images as vectors, standardised."""
    with np.load(path) as data:
        parts = [torch.from_numpy(data[k]) for k in ("train_images", "train_labels", "test_images", "test_labels")]
    x, y, x_test, y_test = parts
    x, x_test = ((t.float().flatten(1) / 255 - 0.286) / 0.353 for t in (x, x_test))
    return Task("Fashion-MNIST", x, y.long(), x_test, y_test.long(), (784, 300, 100, 10))


def digits() -> Task:
    """8 x 8 digits, the first 1200 to train."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 16 - 0.3, torch.tensor(y)[order]
    return Task("digits", x[:1200], y[:1200], x[1200:], y[1200:], (64, 128, 128, 10))


def named(name: str, density: float) -> Method:
    """The registered method; "static" is the first support of SET, held."""
    if name == "static":
        return sw.method("set").with_(name="static", density=density, train=DropGrow(stop=0.0))
    return sw.method(name, density=density)


def trained(task: Task, label: str, method: Method | None, seed: int, epochs: int, density: float) -> Row:
    """Test accuracy in % after `epochs`, and the share of weights ever kept; the support changes every half epoch."""
    torch.manual_seed(seed)
    layers = [m for a, b in zip(task.widths, task.widths[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    batches = len(task.x) // BATCH
    run, explored = None, None
    steps = epochs * batches
    if method is not None:
        if method.train is not None:
            method = method.with_(train=replace(method.train, every=max(1, batches // 2), rescale=True))  # type: ignore[call-arg]
        run = sw.Sparsifier(model, method, optimizer, steps=steps, seed=seed)
        explored = Explored(run.supports)
    flops = TrainingFlops(model if run is None else run)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for some in torch.randperm(len(task.x))[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(task.x[some]), task.y[some]).backward()
            optimizer.step()
            if run is not None and explored is not None and run.step():
                explored.add(run.supports)
            rate.step()
    flops.close()
    supports = run.finish() if run is not None else {}
    with torch.no_grad():
        right = (model(task.x_test).argmax(dim=1) == task.y_test).float().mean()
    more = {"explored": explored.share} if explored is not None else {}
    record = record_of(
        method, supports, model, task=task.name, metric="test accuracy, %", value=100 * float(right), epochs=epochs,
        examples=len(task.x), data=f"{epochs} epochs from random weights", seed=seed, more=more,
        training_flops=flops.total,
    )  # fmt: skip
    if label == "static":
        record = replace(record, dynamic=False, when="before")
    return Row(label, density, record)


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        data={"type": Path, "help": "Fashion-MNIST as .npz", "default": None},
        epochs={"type": int, "default": None, "help": "passes over the training images; default: 4, digits 30"},
        seeds={"type": int, "default": 3, "help": "runs a cell"},
    )
    task = digits() if given.data is None else fashion(given.data)
    epochs, seeds = (1, 1) if given.quick else (given.epochs or (30 if given.data is None else 4), given.seeds)
    sparsities = SPARSITIES[:1] if given.quick else SPARSITIES
    rows = Rows("dynamic", {"task": task.name, "widths": task.widths, "epochs": epochs}, quick=given.quick)
    for seed in range(seeds):
        rows.add(f"dense {seed}", lambda s=seed: trained(task, "dense", None, s, epochs, 1.0))
        for p in sparsities:
            for name in METHODS:
                density = round(1 - p, 6)
                make = lambda s=seed, n=name, d=density: trained(task, n, named(n, d), s, epochs, d)  # noqa: E731
                rows.add(f"{name} {density} {seed}", make)
    rows.show()
    rows.store(given.json)


if __name__ == "__main__":
    main()
