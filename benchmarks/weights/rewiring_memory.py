"""What memory does drop-and-grow need where the dense weight never exists, against masks on a dense weight?

An MLP of two wide layers at 95 % sparsity, Adam, batches of 64, the support changed several times by gradient (RigL). Every
contender runs in a process of its own; the peak of its resident memory counts, less that before the model is built. A process
that dies, for want of memory say, ends the run with an error, and the same command goes on from there.

    python benchmarks/weights/rewiring_memory.py --threads 1 --json rewiring_memory
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments, table
from rows import Row, Rows, record_of, reset_peak, resident

import sparseworks as sw
from sparseworks.weights.train import DropGrow, Rewire
from sparseworks.weights.train.rewire import random_support

BATCH = 64
CONTENDERS = ("dense", "masked RigL", "rewired SET", "rewired RigL")


METRIC = "peak of training, MiB"


def built(name: str, width: int, density: float, seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """Model, optimiser, and what changes the support."""
    torch.manual_seed(seed)
    if name.startswith("rewired"):
        count, generator = round(density * width * width), torch.Generator().manual_seed(seed)
        supports = (random_support((width, width), count, generator) for _ in range(2))
        a, b = (sw.TrainableSparseLinear.from_support(s) for s in supports)
        model = nn.Sequential(a, nn.ReLU(), b)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        return model, optimizer, Rewire(model, chosen(name, density), optimizer, steps=20, seed=seed)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if name == "dense":
        return model, optimizer, None
    return model, optimizer, sw.Sparsifier(model, chosen(name, density), optimizer, steps=20, seed=seed)


def chosen(name: str, density: float) -> sw.Method:
    """SET or RigL with equal densities and a change every four steps."""
    method = sw.method("set" if name.endswith("SET") else "rigl", density=density, allocate="uniform")
    assert isinstance(method.train, DropGrow)
    return method.with_(train=DropGrow(grow=method.train.grow, every=4))


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of parameters, gradients, optimiser state and indices."""
    own = sum(p.nbytes + (p.grad.nbytes if p.grad is not None else 0) for p in model.parameters())
    state = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))
    index = sum(m.index.nbytes for m in model.modules() if isinstance(m, sw.TrainableSparseLinear))
    return own + state + index


def measured(name: str, width: int, density: float, seed: int, threads: int) -> Row:
    """In a fresh process: the peak above the start, what is held after a step, seconds a step and a change."""
    torch.set_num_threads(threads)
    nn.Linear(8, 8)(torch.zeros(1, 8)).sum().backward()
    start = reset_peak()
    if start is None:
        raise RuntimeError("This system does not tell the peak of resident memory (/proc/self/clear_refs).")
    model, optimizer, run = built(name, width, density, seed)
    x, times, bytes_held = torch.randn(BATCH, width), {"step": [], "change": []}, 0
    for _ in range(9):
        began = time.perf_counter()
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()
        event = run.step() if run is not None else None
        times["change" if event else "step"].append(time.perf_counter() - began)
        bytes_held = held(model, optimizer)
    peak = resident("VmHWM") - start
    more = {"held_bytes": bytes_held, "step_s": sorted(times["step"])[2], "change_s": min(times["change"], default=0.0)}
    like = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))  # names and sizes of the layers
    size = 2 * width * width
    supports, looks = run.finish() if run is not None else {}, len(times["change"]) if name.endswith("RigL") else 0
    kept = sum(s.count for s in supports.values()) if supports else size
    record = record_of(
        None if name == "dense" else chosen(name, density), supports, like,
        task=f"2 layers of {width} x {width}, Adam", metric=METRIC, value=peak / 2**20, higher_is_better=False, epochs=1,
        examples=9 * BATCH, data="9 steps on noise", seed=seed, more=more,
        training_flops=BATCH * (9 * 6.0 * kept + looks * 2.0 * (size - kept)),
    )  # fmt: skip
    return Row(
        name, 1.0 if name == "dense" else density, record, seconds=sum(map(sum, times.values())), peak_bytes=peak
    )


def apart(name: str, width: int, density: float, seed: int, threads: int) -> Row:
    """The same in a process of its own.

    Raises:
        BrokenProcessPool: the process died.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measured, name, width, density, seed, threads).result()


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        width={"type": int, "default": 4096, "help": "inputs and outputs of both layers"},
        density={"type": float, "default": 0.05, "help": "share kept"},
        seeds={"type": int, "default": 3, "help": "repetitions"},
    )
    width, seeds = (512, 1) if given.quick else (given.width, given.seeds)
    rows = Rows(
        "rewiring_memory", {"width": width, "density": given.density, "threads": given.threads}, quick=given.quick
    )
    for seed in range(seeds):
        for name in CONTENDERS:
            rows.add(f"{name} {seed}", lambda n=name, s=seed: apart(n, width, given.density, s, given.threads))
    rows.show()
    timed = {row.label: row.record.more for row in rows.rows}
    head = ("contender", "held MiB", "ms a step", "ms a step with a change")
    body = [
        [n, f"{f['held_bytes'] / 2**20:.0f}", f"{1e3 * f['step_s']:.0f}", f"{1e3 * f['change_s']:.0f}"]
        for n, f in timed.items()
    ]
    table("last seed", head, body)
    rows.store(given.json)


if __name__ == "__main__":
    main()
