"""What is left of a network whose channels go while it trains: accuracy, parameters, and the time of the sliced network?

Methods x shares of units that go, each from the same trained network: accuracy right after the run, then the network is sliced
and timed beside the dense one, both as torch runs them. ResNet-20 on CIFAR-10 from a folder with `models/resnet_cifar10` and
`vision/cifar10_*.npz`; without `--data` or with `--quick` a small residual network on scikit-learn's digits. Shortcuts of
the CIFAR networks write their channels down, so only the inner channels of blocks without them go. Penalties are given at
several strengths, HESSO at several numbers of periods. Ten epochs of it take minutes a cell on two cores, seconds on a GPU; a
short run with one seed says that the methods work there, not which is better, and its rows say so.

    python benchmarks/weights/structured.py --threads 1 --json structured
    python benchmarks/weights/structured.py --data data --device cuda --epochs 12 --shares 0.8 0.5 \\
        --methods group_magnitude hesso hesso_cric --json structured_cifar10
"""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from cifar import Course, Images, images, resnet
from cifar import trained as trained_on_images
from common import DEVICE, Line, arguments, line, show
from convolutional_models import Block
from rows import Row, Rows, journals, record_of

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.exec import measure
from sparseworks.stream import dependency_groups
from sparseworks.weights.settings import TrainingFlops
from sparseworks.weights.train import FeatureFlow, GroupProx, SparseGammas

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in (
        "group_magnitude", "hesso", "hesso_cric", "network_slimming", "mask_sparsity", "group_lasso", "wgsef", "ffr",
    )},
    "hesso, 1 period": ("hesso", {"periods": 1}),
    "hesso_cric, 1 period": ("hesso_cric", {"periods": 1, "trials": 10}),
    "hesso_cric, 2 periods": ("hesso_cric", {"periods": 2, "trials": 5}),
    "hesso_cric, 10 periods": ("hesso_cric", {"periods": 10}),
    "hesso_cric, layers tried": ("hesso_cric", {}),
    "hesso_cric, layers tried, 1 period": ("hesso_cric", {"periods": 1, "trials": 10}),
    **{f"group_lasso, {s}": ("group_lasso", {"strength": s}) for s in (0.01, 0.03, 0.1)},
    **{f"wgsef, {s}": ("wgsef", {"strength": s}) for s in (0.01, 0.03, 0.3)},
}  # fmt: skip
"""Label -> the registered method, and what its regime is told."""
METHODS = tuple(VARIANTS)[:8]
FED = tuple(label for label in VARIANTS if "layers tried" in label)
"""Those whose sparsifier is given data, on which layers are projected as in the released code."""
GONE = (0.3, 0.5, 0.7)
BATCH = 64


class Task(NamedTuple):
    name: str
    model: nn.Module
    whole: tuple[str, ...]
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    rate: float
    flops: float | None
    """Of training the network; None = it came trained."""


class Small(nn.Module):
    """Three residual blocks of 16 channels."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def digits(epochs: int) -> Task:
    """8 x 8 digits, the first 1200 to train, and a network trained on them."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order].reshape(-1, 1, 8, 8) / 16 - 0.3, torch.tensor(y)[order]
    task = Task("digits", Small(), (), x[:1200], y[:1200], x[1200:], y[1200:], 0.05, None)
    return task._replace(flops=trained(task, task.model, None, epochs)[1])


def cifar(folder: Path, count: int, device: str = "cpu") -> Task:
    """The trained ResNet-20, the first `count` of 6000 training images and 1000 test images."""
    return Task(
        "cifar10", resnet(folder).to(device), ("layer2.0", "layer3.0"), *images(folder, count, device), 0.05, None
    )


def trained(
    task: Task, model: nn.Module, method: Method | None, epochs: int, seed: int = 0, *, fed: bool = False
) -> tuple[sw.Sparsifier | None, float]:
    """Train `model` in place, with warm-up and cosine; with a method its sparsifier, finished. FLOPs beside it."""
    if task.flops is None and method is not None and task.whole:
        listed = dependency_groups(model, task.x[:2], whole=task.whole)
        data = {"data": [(task.x[:1000], task.y[:1000])], "loss": _loss} if fed else {}
        make = lambda o, n: sw.Sparsifier(model, method, o, steps=n, couplings=listed, seed=seed, **data)  # noqa: E731
        run = trained_on_images(model, Images(*task[3:7]), Course(epochs, task.rate), seed, make)
        run.finish()
        return run, 0.0
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=task.rate, momentum=0.9, weight_decay=1e-4)
    batches = len(task.x) // BATCH
    steps, run = epochs * batches, None
    if method is not None:
        listed = dependency_groups(model, task.x[:2], whole=task.whole)
        run = sw.Sparsifier(model, method, optimizer, steps=steps, couplings=listed, seed=seed)
    flops = TrainingFlops(model if run is None else run)
    generator, step = torch.Generator().manual_seed(seed), 0
    for _ in range(epochs):
        for some in torch.randperm(len(task.x), generator=generator)[: batches * BATCH].split(BATCH):
            share = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            optimizer.param_groups[0]["lr"] = task.rate * min((step + 1) / 20, share)
            optimizer.zero_grad()
            F.cross_entropy(model(task.x[some]), task.y[some]).backward()
            optimizer.step()
            if run is not None:
                run.step()
            step += 1
    flops.close()
    if run is not None:
        run.finish()
    return run, flops.total


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def accuracy(task: Task, model: nn.Module) -> float:
    """Per cent of the test images."""
    model.eval()
    with torch.no_grad():
        said = torch.cat([model(part).argmax(dim=1) for part in task.x_test.split(250)])
    return 100 * float((said == task.y_test).float().mean())


def named(name: str, gone: float, steps: int, rate: float) -> Method:
    """The method, its penalties scaled so that they can do their work in the steps of this run."""
    name, told = VARIANTS[name]
    method = sw.method(name, density=1 - gone)
    reach = 10 * rate * steps / 2  # how far momentum carries a constant gradient
    if told:
        method = method.with_(train=replace(method.train, **told))  # type: ignore[arg-type]
    if isinstance(method.train, SparseGammas):
        strength = 1 if method.train.mark is None else 4  # all factors bear less than those alone that will go
        return method.with_(train=replace(method.train, rate=strength / reach))
    if isinstance(method.train, GroupProx):
        return method.with_(train=replace(method.train, cut=0.6))
    if isinstance(method.train, FeatureFlow):
        return method.with_(train=replace(method.train, length=0.1, bending=0.1))
    return method


def timed(task: Task, dense: nn.Module, sliced: nn.Module, case: str, rounds: int) -> Line:
    """One batch through both."""
    x = task.x_test[:BATCH]
    runs = {name: (lambda m=m: m(x)) for name, m in (("dense", dense.eval()), ("sliced", sliced.eval()))}
    with torch.no_grad():
        return line(case, measure.compare(runs, rounds=rounds), "sliced", "dense")


def measured(
    task: Task, name: str, gone: float, epochs: int, seed: int, rounds: int, lines: list[Line], seeds: int
) -> Row:
    """Accuracy after the run; the first seed's network is sliced and timed as well."""
    model = copy.deepcopy(task.model)
    method = named(name, gone, epochs * (len(task.x) // BATCH), task.rate)
    run, flops = trained(task, model, method, epochs, seed, fed=name in FED)
    assert run is not None
    reached = accuracy(task, model)
    record = record_of(
        method, run.supports, model, task=task.name, metric="test accuracy, %", value=reached, epochs=epochs,
        examples=len(task.x), data=f"{epochs} epochs from a trained network{'' if seeds > 1 else ', one seed: no claim'}", seed=seed,
        training_flops=None if task.flops is None else task.flops + flops,
    )  # fmt: skip
    run.slice()
    if seed == 0 and task.x.device.type == "cpu":
        lines.append(timed(task, task.model, model, f"{name} -{gone:.0%}", rounds))
    kept = [int(k.sum()) for k in run.units.kept.values()]
    more = {"parameters": sum(p.numel() for p in model.parameters()), "sliced": accuracy(task, model), "units": kept}
    return Row(name, round(1 - gone, 6), replace(record, more=more))


def dense(task: Task) -> Row:
    """The network that all begin with."""
    record = record_of(
        None, {}, task.model, task=task.name, metric="test accuracy, %", value=accuracy(task, task.model), epochs=0,
        examples=len(task.x), data="trained before", training_flops=task.flops,
    )  # fmt: skip
    return Row("dense", 1.0, record)


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        data={"type": Path, "help": "folder with the CIFAR-10 images and networks", "default": None},
        epochs={"type": int, "default": 10, "help": "passes over the training images, each method"},
        seeds={"type": int, "default": 3, "help": "runs a cell"},
        images={"type": int, "default": 6000, "help": "training images of CIFAR-10"},
        shares={"type": float, "nargs": "+", "default": GONE, "help": "shares of the units that go"},
        methods={"nargs": "+", "choices": tuple(VARIANTS), "default": METHODS, "help": "the methods"},
        device=DEVICE,
    )
    task = digits(5) if given.data is None else cifar(given.data, 256 if given.quick else given.images, given.device)
    epochs, seeds, shares = (2, 1, GONE[1:2]) if given.quick else (given.epochs, given.seeds, given.shares)
    rounds, lines = min(given.rounds, 3) if given.quick else given.rounds, list[Line]()
    setting = {"task": task.name, "epochs": epochs, "images": len(task.x)}
    rows = Rows("structured", setting, quick=given.quick, folder=journals(given.json))
    rows.add("dense", lambda: dense(task))
    for seed in range(seeds):
        for gone in shares:
            for name in given.methods:
                make = lambda s=seed, g=gone, n=name: measured(task, n, g, epochs, s, rounds, lines, seeds)  # noqa: E731
                rows.add(f"{name} {gone} {seed}", make)
    rows.show()
    for row in rows.rows:
        if row.record.seed == 0 and row.record.more:
            more = row.record.more
            print(
                f"{row.label:<18} {1 - row.density:.0%} gone: {more['parameters']} parameters, units kept {more['units']}"
            )
    show(lines, f"one batch of {BATCH}, sliced beside dense")
    rows.store(given.json, lines=[asdict(entry) for entry in lines])


if __name__ == "__main__":
    main()
