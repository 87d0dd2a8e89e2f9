"""How fast is a training step of a sparse layer, forward and backward, beside dense autograd, and what does changing the support cost?

A step is the product, the gradient of the input and the gradient of the kept weights, packing of activations included; the dense
layer's weight is as large as its shape says, whatever is zero in it. The ceiling counts three products of the kept weights at the
machine's multiply-add rate. A change of the support drops and grows a tenth of the entries and moves Adam's moments along; its
share is that of one change every hundred steps.

    python benchmarks/kernels/training.py --threads 1 --json training
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import Line, arguments, line, show, store, table
from torch import Tensor, nn

from sparseworks.core.support import Support
from sparseworks.exec import measure
from sparseworks.exec.training import TrainableSparseLinear

SHAPES = ((1024, 4096), (1024, 1024), (3072, 768))
TOKENS = (64, 256, 2048)
DENSITIES = (0.2, 0.1, 0.05, 0.02)


def layers(shape: tuple[int, int], density: float) -> tuple[nn.Linear, TrainableSparseLinear]:
    """A dense layer with zeros outside of a random support, and the sparse one."""
    dense = nn.Linear(shape[1], shape[0], bias=False)
    support = Support.from_mask(torch.rand(shape) < density)
    with torch.no_grad():
        dense.weight.mul_(support.mask())
    return dense, TrainableSparseLinear.from_linear(dense, support)


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(dy)

    return run


def check(dense: nn.Linear, sparse: TrainableSparseLinear, x: Tensor, dy: Tensor) -> None:
    """Gradients that differ are refused, not timed."""
    step(dense, x, dy)()
    wanted = [x.grad, sparse.index.gather(dense.weight.grad)]
    step(sparse, x, dy)()
    for a, b in zip(wanted, [x.grad, sparse.values.grad], strict=True):
        if not (a - b).norm() <= 1e-5 * a.norm():
            raise RuntimeError("the sparse layer's gradients differ from the dense layer's")


def compared(shape: tuple[int, int], tokens: int, density: float, rounds: int) -> Line:
    dense, sparse = layers(shape, density)
    x, dy = torch.randn(tokens, shape[1], requires_grad=True), torch.randn(tokens, shape[0])
    check(dense, sparse, x, dy)
    runs = {"dense autograd": step(dense, x, dy), "sparse": step(sparse, x, dy)}
    timings = measure.compare(runs, rounds=rounds)
    flops = 3 * 2 * sparse.index.count * tokens
    case = f"{shape[0]}x{shape[1]}, {tokens} tokens, {1 - density:.0%} zeros"
    return line(case, timings, "sparse", "dense autograd", 1e6 * flops / measure.ceilings().flops)


def change(shape: tuple[int, int], tokens: int, density: float, rounds: int) -> tuple[str, ...]:
    """Microseconds of a step and of a change of the support, and the share of one change in a hundred steps."""
    _, sparse = layers(shape, density)
    x, dy = torch.randn(tokens, shape[1], requires_grad=True), torch.randn(tokens, shape[0])
    optimizer = torch.optim.Adam(sparse.parameters())
    step(sparse, x, dy)()
    optimizer.step()

    def exchange() -> None:
        count = sparse.index.count
        kept = torch.ones(count, dtype=torch.bool)
        kept[torch.randperm(count)[: count // 10]] = False
        taken = sparse.support().mask().flatten()
        grown = torch.randint(taken.numel(), (3 * count,)).unique()
        grown = grown[~taken[grown]][: count // 10]
        start = time_of(lambda: sparse.exchange(kept, grown, [optimizer]))
        spent.append(start)

    spent: list[float] = []
    for _ in range(rounds):
        exchange()
    us = measure.time_call(step(sparse, x, dy), rounds=rounds).us
    median = sorted(spent)[len(spent) // 2]
    return (
        f"{shape[0]}x{shape[1]}, {tokens} tokens, {1 - density:.0%} zeros",
        f"{us:.4g}",
        f"{median:.4g}",
        f"{median / (100 * us + median):.2%}",
    )


def time_of(fn: Callable[[], None]) -> float:
    """Microseconds of one call."""
    import time

    start = time.perf_counter_ns()
    fn()
    return (time.perf_counter_ns() - start) / 1000


def main() -> None:
    given = arguments(__doc__ or "")
    shapes, tokens, densities = (
        (SHAPES[1:2], TOKENS[:1], DENSITIES[1:2]) if given.quick else (SHAPES, TOKENS, DENSITIES)
    )
    rounds = 3 if given.quick else given.rounds
    lines = [compared(s, t, d, rounds) for s in shapes for t in tokens for d in densities]
    show(lines, f"One training step, {given.threads} threads")
    changes = [change(s, t, d, rounds) for s in shapes[:2] for t in tokens[:2] for d in densities[-3:-1] or densities]
    head = ("case", "step us", "change us", "share at one change in 100 steps")
    table("Drop and grow a tenth of the entries", head, changes)
    store("training", lines, given.json, changes=[dict(zip(head, row, strict=True)) for row in changes])


if __name__ == "__main__":
    main()
