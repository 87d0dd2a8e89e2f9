"""SparCL and other sparse training beside the same rehearsal."""

from __future__ import annotations

from typing import NamedTuple

import torch
from rows import Row
from task_streams import Stream, row
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.weights.settings import EasyExamples, Reservoir, ShrinkExpand, TrainingFlops, rehearsal_loss
from sparseworks.weights.train import DropGrow

BATCH = 16


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
