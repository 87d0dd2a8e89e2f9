"""What are cycles of training and pruning worth beside supports chosen before training, and what is left of a pruned ResNet without training?

The first table trains a small network on Fashion-MNIST (5,000 images, 14x14) or, without `--data`, on scikit-learn's digits: test
accuracy, mean and deviation over seeds, at about 79, 89, 95 and 98 % sparsity (0.8^7, 0.8^10, 0.8^13, 2 %). Cycles cost as many
trainings as they have rounds and copies; the last column says how many. The second table prunes the CIFAR-10 ResNets in one shot and
measures batch normalisation anew.

    python benchmarks/weights/tickets.py --data DATA --threads 1 --json tickets
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import itertools

import numpy as np
import torch
from common import arguments, facts, store, table
from convolutional_models import CifarResNet
from torch import Tensor, nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.core.cycle import Cycle
from sparseworks.core.schedule import Survivors
from sparseworks.evaluate import Record, describe
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

    def net(self, seed: int) -> nn.Module:
        """Linear layers with ReLU between them."""
        torch.manual_seed(seed)
        sizes = [self.x.shape[1], *self.hidden, 10]
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1])

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


class Rows:
    """Records by row of the table and density, one a seed."""

    def __init__(self, task: Task, hardware: str):
        self.task, self.hardware = task, hardware
        self.found: dict[tuple[str, float], list[Record]] = {}
        self.trainings: dict[str, int] = {}

    def add(
        self, row: str, density: float, seed: int, value: float, method: sw.Method, supports: Mapping[str, sw.Support],
        trainings: float, **more: Any,
    ) -> None:  # fmt: skip
        """One result."""
        model, task = self.task.net(0), self.task
        listed = sw.sites(model)
        parent = sum(s.size for s in listed)
        own = {"start": "sparse-to-sparse", "when": "before"} if method.cycle is None else {}
        record = Record(
            **{**describe(method, supports, listed), **own},
            task=task.name, metric="test accuracy, %", value=value, parent=parent, seed=seed, hardware=self.hardware,
            epochs=trainings * task.steps * 64 / len(task.x), examples=len(task.x), **more,
        )  # fmt: skip
        self.found.setdefault((row, density), []).append(record)
        self.trainings[row] = max(self.trainings.get(row, 0), round(trainings))

    def table(self, dense: list[float]) -> None:
        """Print mean and deviation."""
        rows = [["dense", *[_spread(dense)] * len(DENSITIES), "1"]]
        for row in dict.fromkeys(r for r, _ in self.found):
            cells = [
                _spread([r.value for r in self.found[(row, d)]]) if (row, d) in self.found else "" for d in DENSITIES
            ]
            rows.append([row, *cells, str(self.trainings[row])])
        table(
            f"Test accuracy, % ({self.task.name})", ("method", *[f"{1 - d:.0%}" for d in DENSITIES], "trainings"), rows
        )


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}"


def cycle(row: str, name: str, task: Task, seed: int, rows: Rows, rate: float) -> float:
    """One run down to the lowest density gives a figure at each; the dense accuracy is returned."""
    method = method_of(name).with_(density=DENSITIES[-1], schedule=Survivors(rate))
    model, trainings, dense = task.net(seed), 0, 0.0
    size = sum(s.size for s in sw.sites(model))

    def each(done: Any, model: nn.Module, supports: Mapping[str, sw.Support]) -> None:
        del model
        nonlocal trainings, dense
        trainings += done.steps / task.steps
        dense = dense or done.quality
        for density in DENSITIES:
            if abs(done.density - density) * size < 2:
                rows.add(row, density, seed, done.quality, method, supports, trainings)

    sw.cycles(
        model, method, lambda m, lap: task.train(m, lap.seed, lambda: None), steps=task.steps, evaluate=task.accuracy, each=each,
        seed=seed, progress=False,
    )  # fmt: skip
    return dense


def soup(row: str, name: str, density: float, task: Task, seed: int, rows: Rows, times: int = 1) -> None:
    """Three cycles to one density; `times` as long a retraining for the control at equal compute."""
    method = sw.method(name, density=density, schedule={"rounds": {"count": 3}})
    model, steps = task.net(seed), 0

    def train(m: nn.Module, lap: Any) -> None:
        task.train(m, lap.seed, lambda: None, task.steps * (times if lap.round else 1))

    found = sw.cycles(model, method, train, evaluate=task.accuracy, seed=seed, progress=False)
    steps = sum(r.steps for r in found.rounds)
    last = found.rounds[-1]
    rows.add(
        row,
        density,
        seed,
        last.quality or 0.0,
        method,
        found.supports,
        steps / task.steps,
        more={"copies": last.copies},
    )


def static(row: str, name: str, density: float, task: Task, seed: int, rows: Rows) -> None:
    """A support chosen before training, and the same densities with entries at random places."""
    method = sw.method(name, density=density)
    data = [(task.x[:512], task.y[:512])]
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    supports = sw.prune(task.net(seed), method, data, loss=loss, seed=seed, progress=False).supports
    values = []
    for chosen in (supports, shuffled(supports, seed)) if "random" not in name else (supports,):
        model = task.net(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        handle = sw.weights.keep_support(optimizer, model, sw.sites(model), chosen)
        task.loop(model, optimizer, seed, task.steps, lambda: None)
        handle.remove()
        values.append(task.accuracy(model))
    control = values[1] if len(values) > 1 else None
    rows.add(row, density, seed, values[0], method, supports, 1, control=control)
    if control is not None:
        rows.add(f"{row}, shuffled", density, seed, control, method, shuffled(supports, seed), 1)


def resnets(data: Path, depths: tuple[int, ...], densities: tuple[float, ...]) -> list[dict[str, Any]]:
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

    found = []
    for depth in depths:
        weights = load_file(data / "models" / "resnet_cifar10" / f"resnet{depth}.safetensors")

        def build(depth: int = depth, weights: Mapping[str, Tensor] = weights) -> nn.Module:
            model = CifarResNet(depth)
            model.load_state_dict(weights, strict=False)
            return model

        found.append(
            {
                "model": f"ResNet-{depth}",
                "method": "dense",
                "density": 1.0,
                "accuracy": accuracy(build()),
                "again": None,
            }
        )
        for density in densities:
            for name in ("magnitude_global", "magnitude", "magnitude_erk"):
                model = build()
                sw.prune(model, sw.method(name, density=density), progress=False)
                first = accuracy(model)
                recalibrate(model, calibration)
                row = {"model": f"ResNet-{depth}", "method": name, "density": density, "accuracy": first}
                found.append({**row, "again": accuracy(model)})
    return found


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
    rows, dense = Rows(task, str(facts()["machine"])), []
    for seed in range(seeds):
        for row, name in CYCLES.items():
            value = cycle(row, name, task, seed, rows, rate)
            dense += [value] if name == "imp" else []
        for density in DENSITIES:
            soup("SMS, 3 copies", "sms", density, task, seed, rows)
            soup("fine-tuned, 3x as long", "imp_finetune", density, task, seed, rows, times=3)
            for row, name in STATIC.items():
                static(row, name, density, task, seed, rows)
    rows.table(dense)
    nets = []
    if given.data:
        nets = resnets(given.data, (20,) if given.quick else (20, 56), (0.3,) if given.quick else (0.5, 0.3, 0.2))
        cells = [
            [r["model"], r["method"], f"{r['density']:.0%}", f"{r['accuracy']:.1f}", "" if r["again"] is None else f"{r['again']:.1f}"]
            for r in nets
        ]  # fmt: skip
        table(
            "One shot, no training: CIFAR-10 accuracy, %",
            ("model", "method", "kept", "pruned", "statistics anew"),
            cells,
        )
    records = [r.to_dict() for group in rows.found.values() for r in group]
    store("tickets", [], given.json, records=records, resnets=nets, dense=dense)


if __name__ == "__main__":
    main()
