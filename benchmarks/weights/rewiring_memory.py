"""What memory does drop-and-grow need where the dense weight never exists, against masks on a dense weight?

An MLP of two wide layers at 95 % sparsity, Adam, batches of 64, the support changed several times by gradient (RigL). Every
contender runs in a process of its own; the peak of its resident memory counts, less that before the model is built.

    python benchmarks/weights/rewiring_memory.py --threads 1 --json rewiring_memory
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments, store, table

import sparseworks as sw
from sparseworks.weights.train import DropGrow, Rewire
from sparseworks.weights.train.rewire import random_support

BATCH = 64
CONTENDERS = ("dense", "masked RigL", "rewired SET", "rewired RigL")


def built(name: str, width: int, density: float) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """Model, optimiser, and what changes the support."""
    torch.manual_seed(0)
    changes = DropGrow(every=4)
    if name.startswith("rewired"):
        count = round(density * width * width)
        a, b = (sw.TrainableSparseLinear.from_support(random_support((width, width), count)) for _ in range(2))
        model = nn.Sequential(a, nn.ReLU(), b)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        method = sw.method("set" if name.endswith("SET") else "rigl")
        assert isinstance(method.train, DropGrow)
        regime = DropGrow(grow=method.train.grow, every=4)
        return model, optimizer, Rewire(model, method.with_(train=regime), optimizer, steps=20)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if name == "dense":
        return model, optimizer, None
    method = sw.method("rigl", density=density, allocate="uniform", train=changes)
    return model, optimizer, sw.Sparsifier(model, method, optimizer, steps=20)


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of parameters, gradients, optimiser state and indices."""
    own = sum(p.nbytes + (p.grad.nbytes if p.grad is not None else 0) for p in model.parameters())
    state = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))
    index = sum(m.index.nbytes for m in model.modules() if isinstance(m, sw.TrainableSparseLinear))
    return own + state + index


def measured(name: str, width: int, density: float, threads: int, out: Any) -> None:
    """In a fresh process: peak above the start, bytes held after a step, seconds a step, seconds a change."""
    torch.set_num_threads(threads)
    nn.Linear(8, 8)(torch.zeros(1, 8)).sum().backward()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model, optimizer, run = built(name, width, density)
    x, times, bytes_held = torch.randn(BATCH, width), {"step": [], "change": []}, 0
    for _ in range(9):
        began = time.perf_counter()
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()
        event = run.step() if run is not None else None
        times["change" if event else "step"].append(time.perf_counter() - began)
        bytes_held = held(model, optimizer)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
    out.put((peak, bytes_held, sorted(times["step"])[2], min(times["change"], default=0.0)))


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        width={"type": int, "default": 4096, "help": "inputs and outputs of both layers"},
        density={"type": float, "default": 0.05, "help": "share kept"},
    )
    width = 512 if given.quick else given.width
    context, figures = multiprocessing.get_context("spawn"), {}
    for name in CONTENDERS:
        out = context.Queue()
        process = context.Process(target=measured, args=(name, width, given.density, given.threads, out))
        process.start()
        peak, bytes_held, step, change = out.get()
        process.join()
        figures[name] = {"peak_bytes": peak, "held_bytes": bytes_held, "step_s": step, "change_s": change}
    rows = [
        [n, f"{f['peak_bytes'] / 2**20:.0f}", f"{f['held_bytes'] / 2**20:.0f}", f"{1e3 * f['step_s']:.0f}", f"{1e3 * f['change_s']:.0f}"]
        for n, f in figures.items()
    ]  # fmt: skip
    head = ("contender", "peak MiB", "held MiB", "ms a step", "ms a step with a change")
    table(f"2 layers of {width} x {width}, density {given.density:g}, Adam", head, rows)
    store("rewiring_memory", [], given.json, width=width, density=given.density, figures=figures)


if __name__ == "__main__":
    main()
