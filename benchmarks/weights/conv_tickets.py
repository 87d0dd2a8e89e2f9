"""In a convolutional network: are masks chosen before training better than their densities alone, and AP better than iterative magnitude pruning?

Six 3x3 convolutions with batch normalisation on 6000 images of CIFAR-10 (`--data`: folder with `vision/cifar10_*.npz`; without it on
scikit-learn's digits). "start": SNIP's and SynFlow's masks, the same densities at random places, and PreCropping, which makes the layers
narrower to as many parameters. "cycles": iterative magnitude pruning down to 5 %, a part of every round spent on the negative weights
that moved least (AP), or on negative weights by chance; beside accuracy the share of zeros after ReLU.

    python benchmarks/weights/conv_tickets.py --data DATA --device cuda --parts start --json conv_start
    python benchmarks/weights/conv_tickets.py --data DATA --device cuda --parts cycles --seeds 5 --json conv_cycles
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import DEVICE, arguments
from images import WIDTHS, Images, accuracy, cifar, convolutional, digits
from rows import Row, Rows, record_of
from torch import Tensor, nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.core.schedule import Survivors
from sparseworks.stream import dependency_groups
from sparseworks.weights.control import shuffled
from sparseworks.weights.cycles import run as cycles_run
from sparseworks.weights.cycles.activate import activated
from sparseworks.weights.precrop import precrop

METRIC = "test accuracy, %"
BATCH = 128
STARTS = {"SNIP": "snip", "SynFlow": "synflow"}
CYCLES = {"IMP": "imp", "AP": "ap", "negatives by chance": "ap"}
Supports = Mapping[str, sw.Support]


@dataclass(frozen=True)
class Run:
    """Data, where the network is, and the length of one training."""

    data: Images
    device: str
    steps: int

    def net(self, seed: int, *widths: int) -> nn.Sequential:
        """The network as drawn, on the CPU."""
        return convolutional(self.data.x.shape[1], widths=widths or WIDTHS, seed=seed)

    def train(self, model: nn.Module, seed: int, supports: Supports | None = None) -> None:
        """SGD with a rate that falls in a straight line; half of the images are mirrored."""
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        handle = sw.weights.keep_support(optimizer, model, sw.sites(model), supports) if supports else None
        draw, x, y = torch.Generator().manual_seed(seed), self.data.x, self.data.y
        chosen = torch.randint(0, len(x), (self.steps, BATCH), generator=draw).to(x.device)
        turned = (torch.rand(self.steps, BATCH, 1, 1, 1, generator=draw) < 0.5).to(x.device)
        model.train()
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / self.steps)
            images, labels = x[chosen[step]], y[chosen[step]]
            if x.shape[1] == 3:
                images = torch.where(turned[step], images.flip(3), images)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        if handle:
            handle.remove()

    def score(self, model: nn.Module) -> float:
        """Test accuracy in per cent."""
        return accuracy(model, self.data.x_test, self.data.y_test)


def row(run: Run, label: str, method: sw.Method | None, supports: Supports, density: float, seed: int, value: float,
        trainings: float, seconds: float | None = None, **more: Any) -> Row:  # fmt: skip
    """One result."""
    record = record_of(
        method, supports, run.net(0), task=f"{run.data.name}, six convolutions", metric=METRIC, value=value, seed=seed,
        epochs=trainings * run.steps * BATCH / len(run.data.x), examples=len(run.data.x),
        data=f"{trainings:.3g} trainings of {run.steps} steps from random weights", fresh=method is not None and method.cycle is None, **more,
    )  # fmt: skip
    return Row(label, density, record, seconds)


# -- supports chosen before training ----------------------------------------------------------------------------------


def start(run: Run, label: str, density: float, seed: int) -> list[Row]:
    """The mask, its densities at random places, and a narrower dense network of as many parameters."""
    method, model = sw.method(STARTS[label], density=density), run.net(seed)
    few = 1 if label == "SynFlow" else 256  # which looks at no image
    some = [(run.data.x[:few].cpu(), run.data.y[:few].cpu())]
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731
    chosen = sw.prune(run.net(seed), method, some, loss=loss, seed=seed, progress=False).supports
    found = []
    for name, supports in ((label, chosen), (f"{label}, shuffled", shuffled(chosen, seed))):
        mine = run.net(seed).to(run.device)
        run.train(mine, seed, supports)
        found.append(row(run, name, method, supports, density, seed, run.score(mine), 1))
    groups = dependency_groups(model, run.data.x[:2].cpu())
    widths = precrop(sw.sites(model), groups, {n: max(s.density, 1e-4) for n, s in chosen.items()})
    narrow = run.net(seed, *widths.values())
    kept = sum(s.size for s in sw.sites(narrow))
    run.train(narrow.to(run.device), seed)
    record = record_of(
        None, {}, run.net(0), task=f"{run.data.name}, six convolutions", metric=METRIC, value=run.score(narrow), seed=seed,
        epochs=run.steps * BATCH / len(run.data.x), examples=len(run.data.x), data=f"1 trainings of {run.steps} steps from random weights",
    )  # fmt: skip
    record = replace(
        record, method="precrop", start="sparse-to-sparse", when="before", structure="channels", kept=kept, densities={"net": density}
    )  # fmt: skip
    return [*found, Row(f"{label}, cropped", density, record)]


def dense(run: Run, seed: int) -> Row:
    """The parent."""
    model = run.net(seed).to(run.device)
    run.train(model, seed)
    return row(run, "dense", None, {}, 1.0, seed, run.score(model), 1)


# -- cycles of training and pruning -----------------------------------------------------------------------------------


@torch.no_grad()
def dead(model: nn.Sequential, x: Tensor) -> float:
    """Share of zeros after ReLU, in per cent, mean over layers."""
    model.eval()
    shares = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            shares.append((x == 0).float().mean())
    model.train()
    return 100 * float(torch.stack(shares).mean())


def by_chance(weights: Any, began: Any, masks: Any, total: int) -> Any:
    """The control of AP: any negative weights go."""
    del began
    g = torch.Generator().manual_seed(total)
    anywhere = {n: w - torch.rand(w.shape, generator=g).to(w.device) for n, w in weights.items()}
    return activated(weights, anywhere, masks, total)


def cycle(run: Run, label: str, seed: int, rate: float, density: float) -> list[Row]:
    """Down to `density`; a row at every round below a half of the weights."""
    method = sw.method(CYCLES[label], density=density, schedule=Survivors(rate))
    model, found, began = run.net(seed).to(run.device), list[Row](), time.perf_counter()

    def each(done: Any, _: nn.Module, supports: Supports) -> None:
        if done.density > 0.5:
            return
        more = {"zeros_after_relu": dead(model, run.data.x_test[:500])}
        known = (run, label, method, supports, round(done.density, 4), seed, run.score(model), len(found) + 3)
        found.append(row(*known, time.perf_counter() - began, more=more))

    chance = patch.object(cycles_run, "activated", by_chance) if "chance" in label else nullcontext()
    with chance:
        sw.cycles(
            model, method, lambda m, lap: run.train(m, lap.seed), steps=run.steps, each=each, seed=seed, progress=False
        )
    return found


def main() -> None:
    given = arguments(
        (__doc__ or "").splitlines()[0],
        device=DEVICE,
        data={"type": Path, "default": None, "help": "folder with vision/cifar10_*.npz; default: digits"},
        parts={"nargs": "+", "default": ["start", "cycles"], "help": "tables to make"},
        seeds={"type": int, "default": 3, "help": "seeds of each figure"},
        steps={"type": int, "default": 800, "help": "steps of a training of `start`; of `cycles` half as many"},
    )
    data = cifar(given.data) if given.data else digits()
    data = data.first(300) if given.quick else data
    steps, seeds = (6, 1) if given.quick else (given.steps, given.seeds)
    run, short = (Run(data.to(given.device), given.device, n) for n in (steps, max(2, steps // 2)))
    where = {"folder": given.json.parent / "journals"} if given.json and given.json.parent != Path() else {}
    name = "conv_tickets" if len(given.parts) > 1 else f"conv_{given.parts[0]}"
    rows = Rows(name, {"data": data.name, "steps": steps}, quick=given.quick, **where)
    for seed in range(seeds):
        if "start" in given.parts:
            rows.add(f"dense {seed}", lambda s=seed: dense(run, s))
            for density in (0.1,) if given.quick else (0.1, 0.05):
                for label in STARTS:
                    rows.add(f"{label} {density} {seed}", lambda x=label, d=density, s=seed: start(run, x, d, s))
        if "cycles" in given.parts:
            for label in CYCLES:
                rate, last = (0.8, 0.05) if given.quick else (0.36, 0.64**7)
                rows.add(f"{label} {seed}", lambda x=label, s=seed, r=rate, p=last: cycle(short, x, s, r, p))
    rows.show()
    rows.store(given.json)


if __name__ == "__main__":
    main()
