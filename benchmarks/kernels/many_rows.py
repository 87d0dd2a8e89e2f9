"""How fast are products with many rows of x, unstructured and with columns shared by 16 outputs, beside dense and sparse peers?

A layer of 1024 x 4096 with random supports. Every kernel that takes them and every rival that is installed is checked, then timed in
the same rounds (`sparseworks.exec.bench`); ratios are over dense torch in float32.

    python benchmarks/kernels/many_rows.py --threads 1 --json many_rows
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import Line, arguments, show, store
from torch import nn

from sparseworks.core.support import Support
from sparseworks.exec.bench import PEER, bench

OUT, IN = 1024, 4096
CASES = (
    ("any", 16, (0.1, 0.05)),
    ("any", 64, (0.2, 0.1, 0.05, 0.02)),
    ("any", 256, (0.2, 0.1, 0.05)),
    ("16 rows", 64, (0.1, 0.05)),
    ("16 rows", 256, (0.1,)),
    ("2:4 over 16 rows", 64, (0.5,)),
    ("2:4 over 16 rows", 256, (0.5,)),
)


def support(kind: str, density: float) -> Support:
    if kind == "any":
        return Support.from_mask(torch.rand(OUT, IN) < density)
    shared = torch.rand(OUT // 16, IN) < density
    if kind.startswith("2:4"):
        shared = (torch.rand(OUT // 16, IN // 4, 4).argsort(dim=2) < 2).flatten(1)
    return Support.from_mask(shared.repeat_interleave(16, dim=0))


def lines(kind: str, rows: int, density: float, rounds: int) -> list[Line]:
    types = (torch.float32, torch.bfloat16, torch.int8)
    found, _ = bench(nn.Linear(IN, OUT, bias=False), support(kind, density), rows, dtypes=types, rounds=rounds)
    dense = next(c for c in found if c.name == PEER)
    case = f"{rows} rows, {1 - density:.0%} zeros, {kind}"
    return [
        Line(case, c.name, PEER, c.us, dense.us, c.ratio, c.low, c.high, 1.0, c.bound_us)
        for c in found
        if c is not dense
    ]


def main() -> None:
    given = arguments(__doc__ or "")
    cases = [(kind, rows, density) for kind, rows, densities in CASES for density in densities]
    found = [entry for case in (cases[:1] if given.quick else cases) for entry in lines(*case, given.rounds)]
    show(found, f"{OUT}x{IN}, {given.threads} threads")
    store("many_rows", found, given.json)


if __name__ == "__main__":
    main()
