"""Are layers whose neurons are grouped worth more than a random support of as many weights, and growth by correlation more than by chance?

A perceptron (784-256-256-10) on Fashion-MNIST at 75 % sparsity, the last layer dense: matched groups held (G2G), the same with growth
between neurons that fire together (G2GNet) or at random, supports at random, held or rewired, RigL, the dense parent, and a dense network
with a quarter of its hidden units. First weights are scaled for the inputs that are kept.

    python benchmarks/weights/modular.py --data DATA --threads 1 --json modular
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import DEVICE, arguments
from dynamic import digits, fashion
from rows import Row, Rows, record_of
from torch import Tensor, nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.scores import Modular, Random
from sparseworks.weights.train import DropGrow

HIDDEN, BATCH = (256, 256), 64


def methods(density: float, every: int) -> dict[str, sw.Method | None]:
    """The contenders; None is dense."""

    def named(name: str, **regime: object) -> sw.Method:
        method = sw.method(name, density=density)
        return method.with_(train=replace(method.train, every=every, rescale=True, **regime))  # type: ignore[arg-type]

    return {
        "dense": None,
        "dense, narrow": None,
        "at random": sw.method("random", density=density),
        "g2g": sw.method("g2g", density=density),
        "at random, rewired": named("g2gnet", grow=Random(), first=Random()),
        "g2g, rewired": named("g2gnet", grow=Random(), first=Modular()),
        "g2gnet": named("g2gnet"),
        "rigl": named("rigl").with_(allocate="uniform"),
    }


def trained(
    data: tuple[Tensor, ...], name: str, label: str, method: sw.Method | None, density: float, seed: int, epochs: int
) -> Row:
    """Test accuracy in per cent."""
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    wide = (x.shape[1], *HIDDEN, 10)
    widths = (x.shape[1], *(round(density * w) for w in HIDDEN), 10) if "narrow" in label else wide
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1]).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(x) // BATCH)
    run = sw.Sparsifier(model, method, optimizer, steps=steps, seed=seed, skip=("4",)) if method else None
    for site in run.sites if run and not isinstance(run.regime, DropGrow) else ():
        site.put(site.weight() * (site.shape[1] / site.mask.sum(dim=1, keepdim=True).clamp(min=1)).sqrt())
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if step % (len(x) // BATCH) == 0:
            order = torch.randperm(len(x)).to(x.device)
        some = order[step % (len(x) // BATCH) * BATCH :][:BATCH]
        optimizer.zero_grad()
        F.cross_entropy(model(x[some]), y[some]).backward()
        optimizer.step()
        rate.step()
        if run:
            run.step()
    supports = run.finish() if run else {}
    with torch.no_grad():
        right = 100 * float((model(x_test).argmax(dim=1) == y_test).float().mean())
    parent = sum(a * b + b for a, b in pairwise(wide))
    record = record_of(
        method, supports, model, task=f"{name}, groups of neurons", metric="test accuracy, %", value=right, seed=seed,
        epochs=epochs, examples=len(x), data=f"{epochs} epochs from random weights", parent=parent,
    )  # fmt: skip
    if method is not None and method.train is None:
        record = replace(record, start="sparse-to-sparse", when="before")
    return Row(label, density if method or "narrow" in label else 1.0, record)


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        device=DEVICE,
        data={"type": Path, "default": None, "help": "folder with vision/fashion_mnist.npz; default: digits"},
        epochs={"type": int, "default": 6, "help": "passes over the training images"},
        seeds={"type": int, "default": 5, "help": "runs a cell"},
    )
    task = fashion(given.data / "vision" / "fashion_mnist.npz") if given.data else digits()
    data = tuple(t.to(given.device) for t in (task.x, task.y, task.x_test, task.y_test))
    epochs, seeds = (1, 1) if given.quick else (given.epochs, given.seeds)
    every = max(1, len(task.x) // BATCH // 2)
    where = {"folder": given.json.parent / "journals"} if given.json and given.json.parent != Path() else {}
    rows = Rows("modular", {"task": task.name, "hidden": HIDDEN, "epochs": epochs}, quick=given.quick, **where)
    for seed in range(seeds):
        for label, method in methods(0.25, every).items():
            make = lambda x=label, m=method, s=seed: trained(data, task.name, x, m, 0.25, s, epochs)  # noqa: E731
            rows.add(f"{label} {seed}", make)
    rows.show()
    rows.store(given.json)


if __name__ == "__main__":
    main()
