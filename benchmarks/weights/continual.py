"""How well do sparse learners of streams remember: CL-DST, SparCL, SHARP and APP beside their own baselines? Three seeds a cell.

Four tables in the layout of the papers: methods x densities with accuracy, and forgetting, training FLOPs or memory beside it.
Five tasks of two digits each (scikit-learn, 8 x 8), or a stream in eight megabatches.

    python benchmarks/weights/continual.py --threads 1 --json continual
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments, store, table

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.scores import Gradient, Momentum, Random, Unfired
from sparseworks.weights.settings import (
    EasyExamples,
    HiddenReplay,
    Mature,
    Neighbours,
    Reservoir,
    ShrinkExpand,
    TaskDropGrow,
    Tasks,
    TrainingFlops,
    contrastive_loss,
    final_accuracy,
    forgetting,
    rehearsal_loss,
    stable_units,
)
from sparseworks.weights.train import DropGrow

BATCH = 16
GROWTH = {"random": Random(), "gradient": Gradient(), "momentum": Momentum(), "unfired": Unfired()}


class Part(NamedTuple):
    x: Tensor
    y: Tensor


class Stream(NamedTuple):
    tasks: list[Part]
    tests: list[Part]
    x: Tensor
    y: Tensor


Found = dict[str, float]


def digits() -> Stream:
    """Five tasks of two classes; 1200 images to train, 597 to test."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 8 - 0.6, torch.tensor(y)[order]
    split = [
        [Part(a[b // 2 == k], b[b // 2 == k]) for k in range(5)]
        for a, b in ((x[:1200], y[:1200]), (x[1200:], y[1200:]))
    ]
    return Stream(split[0], split[1], x[:1200], y[:1200])


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


# -- CL-DST: a support a task -----------------------------------------------------------------------------------------


def task_incremental(stream: Stream, allocate: str, growth: str, density: float, seed: int, steps: int) -> Found:
    """Accuracy with the task known, and forgetting, of one run."""
    torch.manual_seed(seed)
    model, g = Heads(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    train = TaskDropGrow(grow=GROWTH[growth], average=growth == "momentum", every=5)
    method = sw.method("cl_dst", density=density, allocate=allocate, train=train)
    run = sw.Sparsifier(model, method, optimizer, steps=steps, skip=("heads.*",), seed=seed)
    tasks, accuracies = Tasks(run), torch.zeros(5, 5)
    for k, part in enumerate(stream.tasks):
        if k:
            run.next_stage()
        optimizer.state.clear()
        for x, y in batches(part, steps, 32, g):
            optimizer.zero_grad()
            F.cross_entropy(model(x, k), y - 2 * k).backward()
            optimizer.step()
            run.step()
        tasks.close()
        for j in range(k + 1):
            with tasks.at(j), torch.no_grad():
                accuracies[k, j] = (model(stream.tests[j].x, j).argmax(1) == stream.tests[j].y - 2 * j).float().mean()
    return {"accuracy": final_accuracy(accuracies), "forgetting": forgetting(accuracies), "used": tasks.density}


# -- SparCL: rehearsal ------------------------------------------------------------------------------------------------


class Rehearsed(NamedTuple):
    method: Method
    gradients: float | None = None
    removed: float = 0.0


def rehearsals(density: float, every: int) -> dict[str, Rehearsed]:
    """SparCL, without its parts, and other sparse training beside the same rehearsal."""

    def sparcl(gradients: float | None) -> Method:
        return sw.method("sparcl", density=density, train=ShrinkExpand(every=every, gradients=gradients))

    few = 0.8 * density
    return {
        "dense": Rehearsed(sw.method("random", density=1.0)),
        "sparcl": Rehearsed(sparcl(few), few, 0.3),
        "sparcl, all examples": Rehearsed(sparcl(few), few),
        "sparcl, all gradients": Rehearsed(sparcl(None), None, 0.3),
        "rigl": Rehearsed(sw.method("rigl", density=density, allocate="uniform", train=DropGrow(every=every))),
        "snip": Rehearsed(sw.method("snip", density=density)),
    }


def class_incremental(stream: Stream, how: Rehearsed, seed: int, epochs: int, size: int = 100) -> Found:
    """Accuracy over all classes with DER++, forgetting, and GFLOPs of training; the last layer is dense."""
    torch.manual_seed(seed)
    model, g = mlp(64, 128, 128, 10), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    steps = [epochs * -(-len(part.x) // BATCH) for part in stream.tasks]
    buffer, accuracies, staged = (
        Reservoir(size, seed=seed),
        torch.zeros(5, 5),
        isinstance(how.method.train, ShrinkExpand),
    )
    first = [stream.tasks[0]] if how.method.needs and how.method.train is None else None
    run = sw.Sparsifier(
        model, how.method, optimizer, steps=steps[0] if staged else sum(steps), skip=("4",), seed=seed,
        data=first, loss=lambda m, b: F.cross_entropy(m(b.x), b.y),
    )  # fmt: skip
    flops = TrainingFlops(run, how.gradients)
    for k, part in enumerate(stream.tasks):
        if k and staged:
            run.next_stage(steps[k])
        easy, others = EasyExamples(len(part.x)), torch.full((10,), -1e9)
        others[2 * k : 2 * k + 2] = 0.0
        for epoch in range(epochs):
            if how.removed and epoch in (2, 4, 6, 8):
                easy.remove(int(how.removed * len(part.x) / 4))
            for some in easy.left[torch.randperm(len(easy.left), generator=g)].split(BATCH):
                optimizer.zero_grad()
                out = model(part.x[some])
                loss = F.cross_entropy(out + others, part.y[some])
                (loss + rehearsal_loss(model, buffer, BATCH) if k else loss).backward()
                optimizer.step()
                easy.saw(some, out.argmax(1) == part.y[some])
                run.step()
        with torch.no_grad():
            buffer.add(part.x, part.y, model(part.x))
            for j in range(k + 1):
                accuracies[k, j] = (model(stream.tests[j].x).argmax(1) == stream.tests[j].y).float().mean()
    flops.close()
    run.finish()
    return {"accuracy": final_accuracy(accuracies), "forgetting": forgetting(accuracies), "gflops": flops.total / 1e9}


# -- SHARP: units that mature -----------------------------------------------------------------------------------------


def maturing(stream: Stream, delay: int, seed: int, steps: int, phases: int = 10) -> Found:
    """Accuracy over all classes, forgetting, and bytes of memory."""
    torch.manual_seed(seed)
    model, g = nn.Sequential(*mlp(64, 200, 200, 200), nn.ReLU()), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    every = max(steps // phases, 1)
    run = sw.Sparsifier(
        model, sw.method("sharp", train=Mature(every=every, phases=phases, delay=delay)), optimizer, seed=seed
    )
    memory, reader, accuracies = HiddenReplay(1, seed=seed), Neighbours(), torch.zeros(5, 5)
    for k, part in enumerate(stream.tasks):
        for x, y in batches(part, every * phases, 64, g):
            z, labels = model(x), y
            if k:
                hidden, known = memory.sample(64)
                z, labels = torch.cat([z, model[2:](hidden)]), torch.cat([y, known])
            optimizer.zero_grad()
            contrastive_loss(z, labels).backward()
            optimizer.step()
            run.step()
        run.next_stage()
        with torch.no_grad():
            own = {c: part.x[part.y == c][:25] for c in (2 * k, 2 * k + 1)}
            for c, age in memory.classes().items():
                reader.store(c, model[2:](memory.of(c)), stable_units(run, 1 + age))
            for c, x in own.items():
                reader.store(c, model(x), stable_units(run))
            memory.close({c: model[:2](x) for c, x in own.items()})
            for j in range(k + 1):
                accuracies[k, j] = (reader.predict(model(stream.tests[j].x)) == stream.tests[j].y).float().mean()
    return {"accuracy": final_accuracy(accuracies), "forgetting": forgetting(accuracies), "bytes": memory.nbytes}


def replaying(stream: Stream, nbytes: int, seed: int, steps: int) -> Found:
    """Experience replay with a reservoir of as many bytes."""
    torch.manual_seed(seed)
    model, g = mlp(64, 200, 200, 200, 10), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    buffer, accuracies = Reservoir(max(nbytes // (64 * 4 + 8), 1), seed=seed), torch.zeros(5, 5)
    for k, part in enumerate(stream.tasks):
        for x, y in batches(part, steps, 64, g):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + rehearsal_loss(model, buffer, 64, logits=0.0, labels=1.0)).backward()
            optimizer.step()
        order = torch.randperm(len(part.x), generator=g)
        buffer.add(part.x[order], part.y[order])
        with torch.no_grad():
            for j in range(k + 1):
                accuracies[k, j] = (model(stream.tests[j].x).argmax(1) == stream.tests[j].y).float().mean()
    return {"accuracy": final_accuracy(accuracies), "forgetting": forgetting(accuracies), "bytes": buffer.nbytes}


# -- APP: a stream in megabatches -------------------------------------------------------------------------------------


def anytime(stream: Stream, name: str, seed: int, epochs: int, megabatches: int, size: int) -> Found:
    """Final accuracy, gap between training and test accuracy, and cumulative error rate over megabatches, replaying all."""
    torch.manual_seed(seed)
    model, g = mlp(64, 256, 256, 10), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    order, errors, run, gap = torch.randperm(len(stream.x), generator=g), 0.0, None, 0.0
    x_test, y_test = (torch.cat(ts) for ts in zip(*stream.tests, strict=True))

    def loss(model: nn.Module, batch: Part) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y)

    for k in range(megabatches):
        seen = order[: (k + 1) * size]
        few = seen[torch.randperm(len(seen), generator=g)[: max(len(seen) // 5, 1)]]
        data = [Part(stream.x[few], stream.y[few])]
        if name == "app" and run is not None:
            run.next_stage(data=data, loss=loss)
        elif name != "dense" and run is None:
            method = sw.method(name) if name == "app" else sw.method(name, density=0.8**4.5)
            run = sw.Sparsifier(model, method, optimizer, data=data, loss=loss, seed=seed)
        optimizer.state.clear()
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.1 ** (int(epoch >= 0.4 * epochs) + int(epoch >= 0.8 * epochs))
            for some in seen[torch.randperm(len(seen), generator=g)].split(32):
                optimizer.zero_grad()
                loss(model, Part(stream.x[some], stream.y[some])).backward()
                optimizer.step()
                if run is not None:
                    run.step()
        with torch.no_grad():
            right = float((model(x_test).argmax(1) == y_test).float().mean())
            gap = float((model(stream.x[seen]).argmax(1) == stream.y[seen]).float().mean()) - right
        errors += 100 * (1 - right)
    return {"accuracy": right, "gap": gap, "cumulative": errors, "density": run.density if run is not None else 1.0}


# -- tables -----------------------------------------------------------------------------------------------------------


def cell(found: Sequence[Found], *also: tuple[str, str]) -> str:
    """Accuracy in per cent with its deviation, and means of other figures."""
    values = [100 * f["accuracy"] for f in found]
    spread = stdev(values) if len(values) > 1 else 0.0
    return ", ".join(
        [f"{mean(values):.1f} ± {spread:.1f}", *(form.format(mean(f[k] for f in found)) for k, form in also)]
    )


def grid(title: str, rows: dict[str, dict[Any, list[Found]]], *also: tuple[str, str], head: str = "method") -> None:
    """One row a method, one column a setting."""
    columns = list(next(iter(rows.values())))
    table(
        title,
        (head, *map(str, columns)),
        [[n, *(cell(r[c], *also) if c in r else "" for c in columns)] for n, r in rows.items()],
    )


def runs(one: Callable[[int], Found], seeds: int) -> list[Found]:
    """The same with every seed."""
    return [one(seed) for seed in range(seeds)]


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        seeds={"type": int, "default": 3, "help": "runs a cell"},
        steps={"type": int, "default": 100, "help": "steps a task (epochs are a fifth of it)"},
    )
    stream, quick = digits(), given.quick
    seeds, steps = (1, 10) if quick else (given.seeds, given.steps)
    epochs, every = max(steps // 5, 2), max(steps // 3, 2)
    densities = (0.2,) if quick else (0.5, 0.2, 0.1, 0.05)
    growths = ("random",) if quick else tuple(GROWTH)
    tasks = {
        f"{allocate}, {growth}": {
            d: runs(lambda s, a=allocate, w=growth, d=d: task_incremental(stream, a, w, d, s, steps), seeds)
            for d in densities
        }
        for allocate in ("erk", "uniform")
        for growth in growths
    }
    grid(
        "CL-DST: accuracy ± deviation, forgetting, entries used",
        tasks,
        ("forgetting", "{:.3f}"),
        ("used", "{:.0%}"),
        head="budget, growth",
    )

    kept = (0.25,) if quick else (0.25, 0.1)
    rehearsed: dict[str, dict[Any, list[Found]]] = {}
    for d in kept:
        for name, how in rehearsals(d, every).items():
            rehearsed.setdefault(name, {})[d] = runs(lambda s, h=how: class_incremental(stream, h, s, epochs), seeds)
    grid(
        "SparCL with DER++, 100 examples: accuracy, forgetting, training",
        rehearsed,
        ("forgetting", "{:.3f}"),
        ("gflops", "{:.2f} GFLOP"),
    )

    mature = {f"sharp, delay {d}": {"": runs(lambda s, d=d: maturing(stream, d, s, steps), seeds)} for d in (0, 1)}
    nbytes = int(mature["sharp, delay 0"][""][0]["bytes"])
    mature["replay"] = {"": runs(lambda s: replaying(stream, nbytes, s, steps), seeds)}
    grid("SHARP: accuracy, forgetting, bytes of memory", mature, ("forgetting", "{:.3f}"), ("bytes", "{:.0f} B"))

    sizes = (20,) if quick else (20, 60, 140)
    flow = {
        name: {f"8 x {n}": runs(lambda s, m=name, n=n: anytime(stream, m, s, epochs, 8, n), seeds) for n in sizes}
        for name in ("app", "snip", "dense")
    }
    grid("APP: accuracy, gap, cumulative error rate", flow, ("gap", "gap {:.3f}"), ("cumulative", "CER {:.0f}"))
    figures = {"cl_dst": tasks, "sparcl": rehearsed, "sharp": mature, "app": flow}
    cells = {
        paper: {
            f"{name} {column}".strip(): cell(found)
            for name, columns in rows.items()
            for column, found in columns.items()
        }
        for paper, rows in figures.items()
    }
    store("continual", [], given.json, **cells, steps=steps, seeds=seeds)


if __name__ == "__main__":
    main()
