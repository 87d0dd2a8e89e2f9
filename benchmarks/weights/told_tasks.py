"""CL-DST: a support a task, where the task is known."""

from __future__ import annotations

import torch
from rows import Row
from task_streams import Heads, Stream, batches, row
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.scores import Gradient, Momentum, Random, Unfired
from sparseworks.weights.settings import TaskDropGrow, Tasks, TrainingFlops

GROWTH = {"random": Random(), "gradient": Gradient(), "momentum": Momentum(), "unfired": Unfired()}


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
