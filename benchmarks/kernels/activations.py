"""How much faster is a product of one row when inputs are skipped? Weights input-major and cold, another set of inputs each call.

Contenders, in turn: torch's float32 and bfloat16 products with all inputs, our own dense product, and ours with inputs skipped. Then
with half of the weights dropped as well: stored and multiplied as zeros (`inmajor`), or neither (`inbits`, `bitmask` with all inputs).

    python benchmarks/kernels/activations.py --threads 1
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from cold import copies, product, turning
from common import Line, arguments, line, show, store

import sparseworks.exec.kernels  # noqa: F401  registers formats and kernels
from sparseworks.core.support import Support
from sparseworks.exec import Call, measure

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def measured(side: int, skipped: float, rounds: int) -> list[Line]:
    """Lines of every value type against torch's float32 product."""
    weight, full = torch.randn(side, side), Support.full((side, side))
    sets = [torch.randn(1, side).where(torch.rand(1, side) >= skipped, 0.0) for _ in range(16)]
    weights = turning([weight.clone() for _ in range(copies(4 * side * side))])
    halves = turning([weight.bfloat16() for _ in range(copies(2 * side * side))])
    x, half = turning(sets), turning([s.bfloat16() for s in sets])
    contenders = {"torch fp32": lambda: F.linear(x(), weights()), "torch bf16": lambda: F.linear(half(), halves())}
    for suffix in TYPES:
        contenders[f"gemv-{suffix}"] = product(f"gemv-{suffix}", weight, full, turning(sets))
        contenders[f"inmajor-{suffix}"] = product(f"inmajor-{suffix}", weight, full, turning(sets))
    with torch.inference_mode():
        timings = measure.compare(contenders, rounds=rounds, block_us=5000.0)
    lines = []
    for suffix, dtype in TYPES.items():
        read = round(side * side * dtype.itemsize * (1 - skipped))
        call = Call(1, (side, side), threads=torch.get_num_threads())
        bound = measure.bound_us(
            call, read, round(side * side * (1 - skipped)), measure.ceilings(working_set=128 << 20)
        )
        case = f"{side}x{side} {skipped:.0%} skipped"
        lines += [line(case, timings, f"inmajor-{suffix}", peer, bound) for peer in ("torch fp32", f"gemv-{suffix}")]
    return [*lines, line(f"{side}x{side}", timings, "torch bf16", "torch fp32")]


def sparse(side: int, skipped: float, rounds: int, density: float = 0.5) -> list[Line]:
    """Lines of every value type with weights dropped too, against the same without one of the two savings."""
    weight, support = torch.randn(side, side), Support.from_mask(torch.rand(side, side) < density)
    x = turning([torch.randn(1, side).where(torch.rand(1, side) >= skipped, 0.0) for _ in range(16)])
    lines = []
    for suffix, dtype in TYPES.items():
        ours, peers = f"inbits-{suffix}", (f"inmajor-{suffix}", f"bitmask-{suffix}")
        contenders = {name: product(name, weight, support, x) for name in (ours, *peers)}
        with torch.inference_mode():
            timings = measure.compare(contenders, rounds=rounds, block_us=5000.0)
        active = side * side * (1 - skipped)
        call = Call(1, (side, side), density, threads=torch.get_num_threads())
        ceilings = measure.ceilings(working_set=128 << 20)
        bound = measure.bound_us(
            call, round(active * (density * dtype.itemsize + 1 / 8)), round(active * density), ceilings
        )
        case = f"{side}x{side} {skipped:.0%} skipped, {1 - density:.0%} zeros"
        lines += [line(case, timings, ours, peer, bound) for peer in peers]
    return lines


def main() -> None:
    given = arguments(
        "One row of x, inputs skipped, weights cold.", side={"type": int, "default": 4096, "help": "inputs"}
    )
    side, shares = (512, (0.5,)) if given.quick else (given.side, (0.0, 0.5, 0.65, 0.8, 0.9))
    rounds, both = 3 if given.quick else given.rounds, [share for share in shares if 0.5 <= share <= 0.8]
    lines = [entry for share in shares for entry in measured(side, share, rounds)]
    lines += [entry for share in both for entry in sparse(side, share, rounds)]
    show(lines, f"One row, {given.threads} threads, weights cold")
    store("activations", lines, given.json)


if __name__ == "__main__":
    main()
