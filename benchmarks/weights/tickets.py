"""What are cycles of training and pruning worth beside supports chosen before training, and what is left of a pruned ResNet without training?

The first table trains a small network on Fashion-MNIST (5,000 images, 14x14) or, without `--data`, on scikit-learn's digits: test
accuracy, mean and deviation over seeds, at about 79, 89, 95 and 98 % sparsity (0.8^7, 0.8^10, 0.8^13, 2 %). Cycles cost as many
trainings as they have rounds and copies; the last column says how many. The second table prunes the CIFAR-10 ResNets in one shot and
measures batch normalisation anew.

    python benchmarks/weights/tickets.py --data DATA --threads 1 --json tickets
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import itertools
import time

import numpy as np
import torch
from common import arguments
from convolutional_models import CifarResNet
from rows import Row, Rows, record_of
from torch import Tensor, nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.core.cycle import Cycle
from sparseworks.core.schedule import Survivors
from sparseworks.weights import recalibrate
from sparseworks.weights.control import shuffled

DENSITIES = (0.8**7, 0.8**10, 0.8**13, 0.02)
CYCLES = {
    "IMP": "imp",
    "IMP + SWA": "imp_swa",
    "SWAMP": "swamp",
    "AP": "ap",
}
STATIC = {
    "random, ERK": "random_erk",
    "random, uniform": "random",
    "random, SNIP's densities": "random_snip",
    "SNIP": "snip",
    "SynFlow": "synflow",
}


@dataclass(frozen=True)
class Task:
    """Images as vectors, and the length of one training."""

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    hidden: tuple[int, ...]
    steps: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Pixels, hidden units, classes."""
        return (self.x.shape[1], *self.hidden, 10)

    def net(self, seed: int) -> nn.Module:
        """Linear layers with ReLU between them."""
        torch.manual_seed(seed)
        layers = [part for a, b in itertools.pairwise(self.widths) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1])

    def flops(self, density: float, steps: int) -> float:
        """Of so many steps: three products with the kept weights; what chose them is not in it."""
        return 6.0 * 64 * steps * density * sum(a * b for a, b in itertools.pairwise(self.widths))

    def train(self, model: nn.Module, seed: int, after: Callable[[], Any], steps: int | None = None) -> None:
        """SGD with a rate that falls in a straight line; `after` follows every step."""
        total = steps or self.steps
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        self.loop(model, optimizer, seed, total, after)

    def loop(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, total: int, after: Callable[[], Any]
    ) -> None:
        """The steps of one training."""
        generator = torch.Generator().manual_seed(seed)
        for step in range(total):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / total)
            i = torch.randint(0, len(self.x), (64,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(self.x[i]), self.y[i]).backward()
            optimizer.step()
            after()

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Test accuracy in per cent."""
        return 100 * float((model(self.x_test).argmax(1) == self.y_test).float().mean())


def fashion(data: Path, steps: int) -> Task:
    """Fashion-MNIST at 14x14, with the mean and deviation of its training images taken off."""
    z = np.load(data / "vision" / "fashion_mnist.npz")

    def pixels(images: np.ndarray) -> Tensor:
        x = torch.from_numpy(images).float().unsqueeze(1) / 255
        return (F.avg_pool2d(x, 2).flatten(1) - 0.286) / 0.3

    y, y_test = (torch.from_numpy(z[k]).long() for k in ("train_labels", "test_labels"))
    return Task("Fashion-MNIST 14x14", pixels(z["train_images"]), y, pixels(z["test_images"]), y_test, (128, 64), steps)


def digits(steps: int) -> Task:
    """scikit-learn's digits, 900 of them to train on."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    a, b = order[:900], order[900:]
    return Task("digits", x[a], y[a], x[b], y[b], (64, 64), steps)


def method_of(name: str) -> sw.Method:
    """A registered method; "imp_swa" is SWAMP with one particle."""
    if name != "imp_swa":
        return sw.method(name)
    return sw.method("imp", cycle=Cycle(rewind=0.05, tail=0.75))


METRIC = "test accuracy, %"
Supports = Mapping[str, sw.Support]


def row(
    task: Task, label: str, method: sw.Method | None, supports: Supports, density: float, seed: int, value: float,
    trainings: float, seconds: float | None = None, **more: Any,
) -> Row:  # fmt: skip
    """One result; a method without cycles chooses its support before training and holds it."""
    record = record_of(
        method, supports, task.net(0), task=task.name, metric=METRIC, value=value, seed=seed,
        epochs=trainings * task.steps * 64 / len(task.x), examples=len(task.x),
        data=f"{trainings:.3g} trainings of {task.steps} steps from random weights", fresh=method is not None and method.cycle is None, **more,
    )  # fmt: skip
    return Row(label, density, record, seconds)


def cycle(label: str, name: str, task: Task, seed: int, rate: float) -> list[Row]:
    """One run down to the lowest density gives a figure at each, and the dense one."""
    method = method_of(name).with_(density=DENSITIES[-1], schedule=Survivors(rate))
    model, trainings, flops, found, began = task.net(seed), 0.0, 0.0, list[Row](), time.perf_counter()
    size = sum(s.size for s in sw.sites(model))

    def each(done: Any, model: nn.Module, supports: Supports) -> None:
        del model
        nonlocal trainings, flops
        trainings += done.steps / task.steps
        flops += task.flops(done.density, done.steps)
        if done.density == 1.0 and name == "imp":
            found.append(row(task, "dense", None, {}, 1.0, seed, done.quality, trainings, training_flops=flops))
        for density in DENSITIES:
            if abs(done.density - density) * size < 2:
                spent = time.perf_counter() - began
                known = (task, label, method, supports, density, seed, done.quality, trainings, spent)
                found.append(row(*known, training_flops=flops))

    sw.cycles(
        model, method, lambda m, lap: task.train(m, lap.seed, lambda: None), steps=task.steps, evaluate=task.accuracy, each=each,
        seed=seed, progress=False,
    )  # fmt: skip
    return found


def soup(label: str, name: str, density: float, task: Task, seed: int, times: int = 1) -> Row:
    """Three cycles to one density; `times` as long a retraining for the control at equal compute."""
    method = sw.method(name, density=density, schedule={"rounds": {"count": 3}})

    def train(m: nn.Module, lap: Any) -> None:
        task.train(m, lap.seed, lambda: None, task.steps * (times if lap.round else 1))

    found = sw.cycles(task.net(seed), method, train, evaluate=task.accuracy, seed=seed, progress=False)
    trainings, last = sum(r.steps for r in found.rounds) / task.steps, found.rounds[-1]
    flops = sum(task.flops(r.density, r.steps) for r in found.rounds)
    known = (task, label, method, found.supports, density, seed, last.quality or 0.0, trainings)
    return row(*known, more={"copies": last.copies}, training_flops=flops)


def static(label: str, name: str, density: float, task: Task, seed: int) -> list[Row]:
    """A support chosen before training, and the same densities with entries at random places."""
    method = sw.method(name, density=density)
    data = [(task.x[:512], task.y[:512])]
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    chosen = sw.prune(task.net(seed), method, data, loss=loss, seed=seed, progress=False).supports
    size = sum(s.size for s in chosen.values())
    flops = task.flops(sum(s.count for s in chosen.values()) / size, task.steps)
    if "random" in name:
        return [row(task, label, method, chosen, density, seed, held(task, chosen, seed), 1, training_flops=flops)]
    control = shuffled(chosen, seed)
    values = [held(task, supports, seed) for supports in (chosen, control)]
    return [
        row(task, label, method, chosen, density, seed, values[0], 1, control=values[1], training_flops=flops),
        row(task, f"{label}, shuffled", method, control, density, seed, values[1], 1, training_flops=flops),
    ]


def held(task: Task, supports: Supports, seed: int) -> float:
    """Accuracy after a training that keeps the supports."""
    model = task.net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    handle = sw.weights.keep_support(optimizer, model, sw.sites(model), supports)
    task.loop(model, optimizer, seed, task.steps, lambda: None)
    handle.remove()
    return task.accuracy(model)


def resnets(data: Path, depths: tuple[int, ...], densities: tuple[float, ...], rows: Rows) -> None:
    """Trained ResNets pruned by one global threshold, by one a layer, and by ERK densities; then batch normalisation anew."""
    from safetensors.torch import load_file

    z = np.load(data / "vision" / "cifar10_test_first1000.npz")
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def pixels(images: np.ndarray) -> Tensor:
        return ((torch.from_numpy(images).float() / 255 - mean) / spread).permute(0, 3, 1, 2).contiguous()

    x, y = pixels(z["images"]), torch.from_numpy(z["labels"]).long()
    t = np.load(data / "vision" / "cifar10_train_first6000.npz")
    delta = t["delta"][:, :1024]
    rgb = np.cumsum(delta, axis=-1, dtype=np.uint8)
    rgb[0] += rgb[1]
    rgb[2] += rgb[1]
    calibration = pixels(rgb.transpose(1, 2, 3, 0)).split(256)

    def accuracy(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            return 100 * float((torch.cat([model(part) for part in x.split(250)]).argmax(1) == y).float().mean())

    def one(depth: int, name: str, density: float) -> list[Row]:
        model = CifarResNet(depth)
        model.load_state_dict(
            load_file(data / "models" / "resnet_cifar10" / f"resnet{depth}.safetensors"), strict=False
        )
        dense = density == 1.0
        method = None if dense else sw.method(name, density=density)
        supports = {} if method is None else sw.prune(model, method, progress=False).supports
        found, steps = [], [("", 0)] if dense else [("", 0), (", statistics anew", sum(map(len, calibration)))]
        for suffix, seen in steps:
            if seen:
                recalibrate(model, calibration)
            record = record_of(
                method, supports, model, task=f"CIFAR-10, ResNet-{depth} without training", metric=METRIC, value=accuracy(model),
                epochs=0, examples=seen, data=f"a model trained on CIFAR-10; {seen} images for statistics",
            )  # fmt: skip
            found.append(Row(f"{name}{suffix}", density, record))
        return found

    for depth in depths:
        rows.add(f"resnet{depth} dense", lambda d=depth: one(d, "dense", 1.0))
        for density in densities:
            for name in ("magnitude_global", "magnitude", "magnitude_erk"):
                rows.add(f"resnet{depth} {name} {density}", lambda d=depth, n=name, p=density: one(d, n, p))


def main() -> None:
    """Both tables."""
    given = arguments(
        (__doc__ or "").splitlines()[0],
        data={
            "type": Path,
            "default": None,
            "help": "folder with vision/ and models/ (see the header); default: digits",
        },
        seeds={"type": int, "default": 3, "help": "seeds of each figure"},
    )
    steps, seeds, rate = (60, 1, 0.2) if given.quick else (300, given.seeds, 0.2)
    task = fashion(given.data, steps) if given.data else digits(steps)
    setting = {"task": task.name, "hidden": task.hidden, "steps": steps, "rate": rate}
    rows = Rows("tickets", setting, quick=given.quick)
    for seed in range(seeds):
        for label, name in CYCLES.items():
            rows.add(f"{label} {seed}", lambda x=label, n=name, s=seed: cycle(x, n, task, s, rate))
        for d in DENSITIES:
            rows.add(f"sms {d:.4f} {seed}", lambda d=d, s=seed: soup("SMS, 3 copies", "sms", d, task, s))
            longer = lambda d=d, s=seed: soup("fine-tuned, 3x as long", "imp_finetune", d, task, s, times=3)  # noqa: E731
            rows.add(f"imp_finetune {d:.4f} {seed}", longer)
            for label, name in STATIC.items():
                rows.add(f"{label} {d:.4f} {seed}", lambda x=label, n=name, d=d, s=seed: static(x, n, d, task, s))
    if given.data:
        resnets(given.data, (20,) if given.quick else (20, 56), (0.3,) if given.quick else (0.5, 0.3, 0.2), rows)
    rows.show()
    rows.store(given.json)


if __name__ == "__main__":
    main()
