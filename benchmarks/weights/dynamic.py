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
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments, store, table

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.weights.train import DropGrow, Explored

METHODS = ("static", "set", "rigl", "dst_ee", "srigl", "granet")
SPARSITIES = (0.9, 0.95, 0.98)
BATCH = 64


class Task(NamedTuple):
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    widths: tuple[int, ...]


class Found(NamedTuple):
    accuracy: float
    explored: float


def fashion(path: Path) -> Task:
    """Images as vectors, standardised."""
    with np.load(path) as data:
        parts = [torch.from_numpy(data[k]) for k in ("train_images", "train_labels", "test_images", "test_labels")]
    x, y, x_test, y_test = parts
    x, x_test = ((t.float().flatten(1) / 255 - 0.286) / 0.353 for t in (x, x_test))
    return Task(x, y.long(), x_test, y_test.long(), (784, 300, 100, 10))


def digits() -> Task:
    """8 x 8 digits, the first 1200 to train."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 16 - 0.3, torch.tensor(y)[order]
    return Task(x[:1200], y[:1200], x[1200:], y[1200:], (64, 128, 128, 10))


def named(name: str, density: float) -> Method:
    """The registered method; "static" is the first support of SET, held."""
    if name == "static":
        return sw.method("set", density=density, train=DropGrow(stop=0.0))
    return sw.method(name, density=density)


def trained(task: Task, method: Method | None, seed: int, epochs: int) -> Found:
    """Test accuracy after `epochs`, and the share of weights ever kept; the support changes every half epoch."""
    torch.manual_seed(seed)
    layers = [m for a, b in zip(task.widths, task.widths[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    batches = len(task.x) // BATCH
    run = explored = None
    steps = epochs * batches
    if method is not None:
        if method.train is not None:
            method = method.with_(train=replace(method.train, every=max(1, batches // 2), rescale=True))  # type: ignore[call-arg]
        run = sw.Sparsifier(model, method, optimizer, steps=steps, seed=seed)
        explored = Explored(run.supports)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for some in torch.randperm(len(task.x))[: batches * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(task.x[some]), task.y[some]).backward()
            optimizer.step()
            if run is not None and explored is not None and run.step():
                explored.add(run.supports)
            rate.step()
    if run is not None:
        run.finish()
    with torch.no_grad():
        accuracy = float((model(task.x_test).argmax(dim=1) == task.y_test).float().mean())
    return Found(accuracy, explored.share if explored else 1.0)


def cell(found: list[Found]) -> str:
    """Mean and deviation in per cent, and the share explored."""
    accuracies = [100 * f.accuracy for f in found]
    spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
    return f"{mean(accuracies):.2f} ± {spread:.2f} ({mean(f.explored for f in found):.0%})"


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        data={"type": Path, "help": "Fashion-MNIST as .npz", "default": None},
        epochs={"type": int, "default": 4, "help": "passes over the training images"},
        seeds={"type": int, "default": 3, "help": "runs a cell"},
    )
    task = digits() if given.data is None else fashion(given.data)
    epochs, seeds = (1, 1) if given.quick else (given.epochs, given.seeds)
    sparsities = SPARSITIES[:1] if given.quick else SPARSITIES
    dense = [trained(task, None, s, epochs) for s in range(seeds)]
    cells = {
        name: {p: [trained(task, named(name, 1 - p), s, epochs) for s in range(seeds)] for p in sparsities}
        for name in METHODS
    }
    rows = [["dense", cell(dense), *[""] * (len(sparsities) - 1)]]
    rows += [[name, *(cell(found) for found in columns.values())] for name, columns in cells.items()]
    title = f"accuracy in % ± deviation of {seeds} seeds (share ever kept), {task.widths}, {epochs} epochs"
    table(title, ("method", *(f"{p:.0%} sparse" for p in sparsities)), rows)
    figures = {n: {str(p): [f._asdict() for f in found] for p, found in c.items()} for n, c in cells.items()}
    task_name = "digits" if given.data is None else "fashion"
    store("dynamic", [], given.json, task=task_name, dense=[f._asdict() for f in dense], cells=figures, epochs=epochs)


if __name__ == "__main__":
    main()
