"""How well do sparse learners of streams remember: CL-DST, SparCL, SHARP and APP beside their own baselines? Three seeds a cell.

Accuracy in the layout of the papers, methods x densities, with forgetting, training FLOPs, memory or errors over the stream beside it.
Five tasks of two classes each, or a stream in eight megabatches: perceptrons on scikit-learn's digits, or with `--data` (a folder with
`vision/cifar10_*.npz` and `vision/fashion_mnist.npz`) SparCL and APP with six convolutions on CIFAR-10 or perceptrons on Fashion-MNIST.

    python benchmarks/weights/continual.py --threads 1 --json continual
    python benchmarks/weights/continual.py --data DATA --device cuda --parts rehearsal megabatches --json continual_cifar10
    python benchmarks/weights/continual.py --data DATA --images fashion --parts rehearsal megabatches --threads 1 --json continual_fashion
    python benchmarks/weights/continual.py --width 32 --parts told --densities 0.2 0.1 0.05 --growth random gradient --threads 1 --json continual_wide
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import DEVICE, arguments
from images import Images, cifar, fashion
from rows import Row, Rows, record_of
from task_streams import Heads, Part, Stream, batches, digits, mlp, stream_of

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


# -- CL-DST: a support a task -----------------------------------------------------------------------------------------


def task_incremental(
    stream: Stream, allocate: str, growth: str, density: float, seed: int, steps: int, width: int = 8
) -> Row:
    """Accuracy with the task known, and the share of entries that any task uses."""
    torch.manual_seed(seed)
    model, g = Heads(width), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    train = TaskDropGrow(grow=GROWTH[growth], average=growth == "momentum", every=5)
    method = sw.method("cl_dst", density=density, allocate=allocate, train=train)
    run = sw.Sparsifier(model, method, optimizer, steps=steps, skip=("heads.*",), seed=seed)
    tasks, accuracies, flops = Tasks(run), torch.zeros(5, 5), TrainingFlops(run)
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
        model.eval()
        for j in range(k + 1):
            with tasks.at(j), torch.no_grad():
                accuracies[k, j] = (model(stream.tests[j].x, j).argmax(1) == stream.tests[j].y - 2 * j).float().mean()
        model.train()
    flops.close()
    return row(
        f"{allocate}, {growth}", method, density, run.supports, model, flops, accuracies, {"used": tasks.density},
        task="digits, five tasks that are told", epochs=32 * 5 * steps / 1200, seed=seed,
        data=f"{steps} steps a task from random weights",
    )  # fmt: skip


# -- SparCL: rehearsal ------------------------------------------------------------------------------------------------


class Rehearsed(NamedTuple):
    method: Method | None
    gradients: float | None = None
    removed: float = 0.0


def rehearsals(density: float, every: int) -> dict[str, Rehearsed]:
    """SparCL, without its parts, and other sparse training beside the same rehearsal."""

    def sparcl(gradients: float | None) -> Method:
        return sw.method("sparcl", density=density, train=ShrinkExpand(every=every, gradients=gradients))

    few = 0.8 * density
    learned = few + (density - few) / ShrinkExpand.again  # all are looked at when it is decided which pass
    return {
        "dense": Rehearsed(None),
        "sparcl": Rehearsed(sparcl(few), learned, 0.3),
        "sparcl, all examples": Rehearsed(sparcl(few), learned),
        "sparcl, all gradients": Rehearsed(sparcl(None), None, 0.3),
        "rigl": Rehearsed(sw.method("rigl", density=density, allocate="uniform", train=DropGrow(every=every))),
        "snip": Rehearsed(sw.method("snip", density=density)),
    }


REMOVALS = (2, 4, 6, 8)
"""Epochs of a task before which easy examples are removed."""


def planned(examples: int, epochs: int, removed: float, batch: int) -> int:
    """Steps of a task."""
    gone = [int(removed * examples / len(REMOVALS)) * sum(at <= epoch for at in REMOVALS) for epoch in range(epochs)]
    return sum(-(-(examples - some) // batch) for some in gone)


def class_incremental(
    stream: Stream,
    label: str,
    how: Rehearsed,
    density: float,
    seed: int,
    epochs: int,
    size: int = 100,
    batch: int = BATCH,
) -> Row:
    """Accuracy over all classes with DER++; the last layer is dense."""
    torch.manual_seed(seed)
    model, g = stream.net(128, 128, 10), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    steps = [planned(len(part.x), epochs, how.removed, batch) for part in stream.tasks]
    buffer, accuracies, run, seen = Reservoir(size, seed=seed), torch.zeros(5, 5), None, 0
    staged = how.method is not None and isinstance(how.method.train, ShrinkExpand)
    if how.method is not None:
        first = [stream.tasks[0]] if how.method.needs and how.method.train is None else None
        run = sw.Sparsifier(
            model, how.method, optimizer, steps=steps[0] if staged else sum(steps), skip=(sw.sites(model)[-1].name,), seed=seed,
            data=first, loss=lambda m, b: F.cross_entropy(m(b.x), b.y),
        )  # fmt: skip
    flops = TrainingFlops(model if run is None else run, how.gradients)
    for k, part in enumerate(stream.tasks):
        if k and staged and run is not None:
            run.next_stage(steps[k])
        easy, others = EasyExamples(len(part.x)), torch.full((10,), -1e9, device=part.x.device)
        others[2 * k : 2 * k + 2] = 0.0
        for epoch in range(epochs):
            if how.removed and epoch in REMOVALS:
                easy.remove(int(how.removed * len(part.x) / 4))
            for some in easy.left[torch.randperm(len(easy.left), generator=g)].split(batch):
                optimizer.zero_grad()
                out = model(part.x[some])
                loss = F.cross_entropy(out + others, part.y[some])
                (loss + rehearsal_loss(model, buffer, batch) if k else loss).backward()
                optimizer.step()
                easy.saw(some, out.argmax(1) == part.y[some])
                seen += len(some)
                if run is not None:
                    run.step()
        model.eval()
        with torch.no_grad():
            buffer.add(part.x, part.y, model(part.x))
            for j in range(k + 1):
                accuracies[k, j] = (model(stream.tests[j].x).argmax(1) == stream.tests[j].y).float().mean()
        model.train()
    flops.close()
    return row(
        label, how.method, density, run.finish() if run is not None else {}, model, flops, accuracies, {},
        task=f"{stream.name}, five tasks, rehearsal", epochs=seen / len(stream.x), seed=seed, examples=len(stream.x),
        data=f"{epochs} epochs a task from random weights, {size} examples for DER++",
    )  # fmt: skip


# -- SHARP: units that mature -----------------------------------------------------------------------------------------


def maturing(stream: Stream, delay: int, seed: int, steps: int, phases: int = 10) -> Row:
    """Accuracy over all classes, read off by neighbours in place of a last layer, and bytes of memory."""
    torch.manual_seed(seed)
    model, g = nn.Sequential(*mlp(64, 200, 200, 200), nn.ReLU()), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    every = max(steps // phases, 1)
    method = sw.method("sharp", train=Mature(every=every, phases=phases, delay=delay))
    run = sw.Sparsifier(model, method, optimizer, seed=seed)
    memory, reader, accuracies = HiddenReplay(1, seed=seed), Neighbours(), torch.zeros(5, 5)
    flops = TrainingFlops(run)
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
        model.eval()
        with torch.no_grad():
            own = {c: part.x[part.y == c][:25] for c in (2 * k, 2 * k + 1)}
            for c, age in memory.classes().items():
                reader.store(c, model[2:](memory.of(c)), stable_units(run, 1 + age))
            for c, x in own.items():
                reader.store(c, model(x), stable_units(run))
            memory.close({c: model[:2](x) for c, x in own.items()})
            for j in range(k + 1):
                accuracies[k, j] = (reader.predict(model(stream.tests[j].x)) == stream.tests[j].y).float().mean()
        model.train()
    flops.close()
    return row(
        f"sharp, delay {delay}", method, 0.4, run.supports, model, flops, accuracies, {"memory_bytes": memory.nbytes},
        parent=sum(p.numel() for p in mlp(*UNITS).parameters()), seed=seed, **replayed(every * phases),
    )  # fmt: skip


UNITS = (64, 200, 200, 200, 10)


def replayed(steps: int) -> dict[str, Any]:
    """Task and training that SHARP and replay share."""
    epochs = 64 * 5 * steps / 1200
    return {"task": "digits, five tasks, replay", "epochs": epochs, "data": f"{steps} steps a task from random weights"}


def replaying(stream: Stream, nbytes: int, seed: int, steps: int) -> Row:
    """Experience replay with a reservoir of at most as many bytes."""
    torch.manual_seed(seed)
    model, g = mlp(*UNITS), torch.Generator().manual_seed(seed)
    optimizer, flops = torch.optim.SGD(model.parameters(), lr=0.1), TrainingFlops(model)
    buffer, accuracies = Reservoir(max(nbytes // (64 * 4 + 8), 1), seed=seed), torch.zeros(5, 5)
    for k, part in enumerate(stream.tasks):
        for x, y in batches(part, steps, 64, g):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + rehearsal_loss(model, buffer, 64, logits=0.0, labels=1.0)).backward()
            optimizer.step()
        order = torch.randperm(len(part.x), generator=g)
        buffer.add(part.x[order], part.y[order])
        model.eval()
        with torch.no_grad():
            for j in range(k + 1):
                accuracies[k, j] = (model(stream.tests[j].x).argmax(1) == stream.tests[j].y).float().mean()
        model.train()
    flops.close()
    return row(
        "replay", None, 1.0, {}, model, flops, accuracies, {"memory_bytes": buffer.nbytes}, seed=seed, **replayed(steps)
    )


# -- APP: a stream in megabatches -------------------------------------------------------------------------------------


FINAL = round(0.8**4.5, 6)


def anytime(stream: Stream, name: str, seed: int, epochs: int, megabatches: int, size: int) -> Row:
    """Final accuracy, gap between training and test accuracy, and errors in per cent summed over megabatches, replaying all."""
    torch.manual_seed(seed)
    model, g = stream.net(256, 256, 10), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    order, errors, run, gap, right = torch.randperm(len(stream.x), generator=g), 0.0, None, 0.0, 0.0
    method = None if name == "dense" else sw.method(name) if name == "app" else sw.method(name, density=FINAL)
    flops: TrainingFlops | None = None
    x_test, y_test = (torch.cat(ts) for ts in zip(*stream.tests, strict=True))

    def loss(model: nn.Module, batch: Part) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y)

    for k in range(megabatches):
        seen = order[: (k + 1) * size]
        few = seen[torch.randperm(len(seen), generator=g)[: max(len(seen) // 5, 1)]]
        data = [Part(stream.x[few], stream.y[few])]
        if name == "app" and run is not None:
            run.next_stage(data=data, loss=loss)
        elif method is not None and run is None:
            run = sw.Sparsifier(model, method, optimizer, data=data, loss=loss, seed=seed)
        flops = flops or TrainingFlops(model if run is None else run)
        optimizer.state.clear()
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.1 ** (int(epoch >= 0.4 * epochs) + int(epoch >= 0.8 * epochs))
            for some in seen[torch.randperm(len(seen), generator=g)].split(32):
                optimizer.zero_grad()
                loss(model, Part(stream.x[some], stream.y[some])).backward()
                optimizer.step()
                if run is not None:
                    run.step()
        model.eval()
        with torch.no_grad():
            right = float((model(x_test).argmax(1) == y_test).float().mean())
            gap = float((model(stream.x[seen]).argmax(1) == stream.y[seen]).float().mean()) - right
        model.train()
        errors += 100 * (1 - right)
    assert flops is not None
    flops.close()
    record = record_of(
        method, run.supports if run is not None else {}, model, task=f"{stream.name} in {megabatches} megabatches of {size}",
        metric="test accuracy, %", value=100 * right, examples=megabatches * size, seed=seed, training_flops=flops.total,
        epochs=epochs * (megabatches + 1) / 2, data=f"{epochs} epochs a megabatch on all that came, from random weights",
        more={"gap": 100 * gap, "errors_summed": errors},
    )  # fmt: skip
    if name == "snip":
        record = replace(record, start="sparse-to-sparse", when="before")
    return Row(name, 1.0 if method is None else FINAL, record)


PARTS = ("told", "rehearsal", "replay", "megabatches")


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        device=DEVICE,
        data={"type": Path, "default": None, "help": "folder with vision/; default: digits"},
        images={"choices": ("cifar10", "fashion"), "default": "cifar10", "help": "those of `data`"},
        parts={
            "nargs": "+",
            "default": PARTS,
            "choices": PARTS,
            "help": "tables to make; with images rehearsal and megabatches",
        },
        width={"type": int, "default": 8, "help": "of the convolutions of tasks that are told"},
        densities={"nargs": "+", "type": float, "default": [0.5, 0.2, 0.1, 0.05], "help": "of tasks that are told"},
        growth={
            "nargs": "+",
            "default": [*GROWTH],
            "choices": [*GROWTH],
            "help": "scores to grow by, of tasks that are told",
        },
        seeds={"type": int, "default": 3, "help": "runs a cell"},
        steps={"type": int, "default": 100, "help": "steps a task (epochs are a fifth of it)"},
    )
    seeds, steps = (1, 10) if given.quick else (given.seeds, given.steps)
    setting = {"steps": steps} | ({"width": given.width} if given.width != 8 else {})
    where = {"folder": given.json.parent / "journals"} if given.json and given.json.parent != Path() else {}
    if given.data is not None:
        rows = Rows(f"continual_{given.images}", setting, quick=given.quick, **where)
        images = (cifar if given.images == "cifar10" else fashion)(given.data).to(given.device)
        images = (
            images
            if given.images == "cifar10"
            else images._replace(x=images.x.flatten(1), x_test=images.x_test.flatten(1))
        )
        images = images.first(200) if given.quick else images
        photographs(rows, images, given.parts, seeds, steps, given.quick)
    else:
        rows = Rows("continual" if given.width == 8 else "continual_wide", setting, quick=given.quick, **where)
        if "told" in given.parts:
            told(rows, given, seeds, steps)
        handwriting(rows, given.parts, seeds, steps, given.quick)
    rows.show()
    rows.store(given.json)


def photographs(rows: Rows, images: Images, parts: Sequence[str], seeds: int, steps: int, quick: bool) -> None:
    """SparCL and APP on images; "longer" trains SparCL for as many FLOPs as RigL costs."""
    stream, epochs, batch = stream_of(*images), max(steps // 5, 2), 64
    every = max(5 * epochs * len(images.x) // (5 * 50 * batch), 2)  # five of fifty epochs
    for seed in range(seeds):
        for density in ((0.25,) if quick else (0.25, 0.1)) if "rehearsal" in parts else ():
            ways = rehearsals(density, every)
            for name in ("dense", "sparcl", "sparcl, longer", "sparcl, all gradients", "rigl", "snip"):
                how, asked = ways[name.removesuffix(", longer")], 1.0 if name == "dense" else density
                long = round(epochs * 4 / 3) if "longer" in name else epochs
                make = partial(class_incremental, stream, name, how, asked, seed, long, 200, batch)
                if asked < 1 or density == 0.25:
                    rows.add(f"rehearsal {name} {asked} {seed}", make)
        if "megabatches" in parts:
            for size in (8,) if quick else (400,):
                for name in ("dense", "snip", "app"):
                    make = partial(anytime, stream, name, seed, max(epochs * 3 // 5, 2), 8, size)
                    rows.add(f"{name} {size} {seed}", make)


def told(rows: Rows, given: Namespace, seeds: int, steps: int) -> None:
    """CL-DST on digits."""
    stream, quick = digits(), given.quick
    for seed in range(seeds):
        for density in (0.2,) if quick else given.densities:
            for allocate in ("erk", "uniform"):
                for growth in ("random",) if quick else given.growth:
                    make = partial(task_incremental, stream, allocate, growth, density, seed, steps, given.width)
                    rows.add(f"cl_dst {allocate} {growth} {density} {seed}", make)


def handwriting(rows: Rows, parts: Sequence[str], seeds: int, steps: int, quick: bool) -> None:
    """The other tables on digits."""
    stream, epochs, every = digits(), max(steps // 5, 2), max(steps // 3, 2)
    for seed in range(seeds):
        for density in ((0.25,) if quick else (0.25, 0.1)) if "rehearsal" in parts else ():
            for name, how in rehearsals(density, every).items():
                asked = density if how.method is not None else 1.0
                make = lambda s=seed, d=asked, n=name, h=how: class_incremental(stream, n, h, d, s, epochs)  # noqa: E731
                if asked < 1 or density == 0.25:
                    rows.add(f"sparcl {name} {asked} {seed}", make)
        if "replay" in parts:
            matured = [
                rows.add(f"sharp {d} {seed}", lambda s=seed, d=d: maturing(stream, d, s, steps))[0] for d in (0, 1)
            ]
            nbytes = matured[0].record.more["memory_bytes"]
            rows.add(f"replay {seed}", lambda s=seed, n=nbytes: replaying(stream, n, s, steps))
        for size in ((20,) if quick else (20, 60, 140)) if "megabatches" in parts else ():
            for name in ("dense", "snip", "app"):
                rows.add(f"{name} {size} {seed}", lambda s=seed, m=name, n=size: anytime(stream, m, s, epochs, 8, n))


if __name__ == "__main__":
    main()
