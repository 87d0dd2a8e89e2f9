"""SHARP, whose units mature, and replay in as many bytes."""

from __future__ import annotations

from typing import Any

import torch
from rows import Row
from task_streams import Stream, batches, mlp, row
from torch import nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.weights.settings import (
    HiddenReplay,
    Mature,
    Neighbours,
    Reservoir,
    TrainingFlops,
    contrastive_loss,
    rehearsal_loss,
    stable_units,
)


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
