"""How fast and how exact are products with dense int8 weights for many rows of x, beside torch in float32 and torch's int8?

Ours rounds the inputs to 16-bit fixed point, torch's dynamically quantised linear layer to 8 bits; errors are relative to float64.

    python benchmarks/kernels/int8.py --threads 1 --json int8
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import Line, arguments, line, show, store

from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS, measure
from sparseworks.exec.rivals import RIVALS, error

SHAPES = ((1024, 4096), (4096, 4096))
ROWS = (2, 4, 16, 64, 256)
OURS, PEERS = "gemm-int8", ("torch dense fp32", "torch dense int8 (dynamic)")


def lines(out: int, width: int, rows: int, rounds: int) -> list[Line]:
    weight, x, support = torch.randn(out, width), torch.randn(rows, width), Support.full((out, width))
    packed, kernel = FORMATS.get("dense").pack(weight, support, dtype=torch.int8), KERNELS.get(OURS)
    runs = {name: RIVALS.get(name).build(weight, support) for name in PEERS} | {OURS: lambda x: kernel(x, packed, None)}
    errors = ", ".join(f"{name} {error(run, weight, x):.1e}" for name, run in runs.items())
    print(f"{out}x{width}, {rows} rows, relative errors: {errors}")
    timings = measure.compare({name: lambda run=run: run(x) for name, run in runs.items()}, rounds=rounds)
    return [line(f"{out}x{width}, {rows} rows", timings, OURS, peer) for peer in PEERS]


def main() -> None:
    given = arguments(__doc__ or "")
    cases = [(*shape, rows) for shape in SHAPES for rows in ROWS]
    with torch.inference_mode():
        found = [entry for case in (cases[:2] if given.quick else cases) for entry in lines(*case, given.rounds)]
    show(found, f"{given.threads} threads")
    store("int8", found, given.json)


if __name__ == "__main__":
    main()
