"""What do the kernels of a wider instruction set bring on this processor? AVX-512 beside AVX2 (or AVX2 beside SSE2), same packed weights.

The build holds every kernel for several instruction sets and a process can change between them, so both run in the same rounds. Torch's
dense product in float32 stands beside the wider one. No ceiling: the question is what the width alone brings.

    python benchmarks/kernels/instructions.py --threads 1 --json instructions
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import Line, arguments, line, show, store
from torch.nn.functional import linear

from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS, measure
from sparseworks.exec.native import features, native

SHAPE = (1024, 4096)
ORDER = ("portable", "avx2", "avx512")
UNITS = {
    "panel": (16, 1),
    "pairs": (1, 2),
}  # rows and columns that are kept together; other formats take single entries
CASES: dict[str, tuple[tuple[float, ...], tuple[int, ...]]] = {
    "gemv-fp32": ((1.0,), (1,)),
    "gemv-bf16": ((1.0,), (1,)),
    "gemv-int8": ((1.0,), (1,)),
    "gemm-int8": ((1.0,), (16, 64, 256)),
    "bitmask-fp32": ((0.5, 0.2), (1,)),
    "bitmask-bf16": ((0.5, 0.2), (1,)),
    "csr16-fp32": ((0.1, 0.05), (1, 4)),
    "csr16-bf16": ((0.1, 0.05), (1, 4)),
    "tile-fp32": ((0.2, 0.1, 0.05), (16, 64, 256)),
    "tile-bf16": ((0.1,), (64, 256)),
    "panel-fp32": ((0.1, 0.05), (1, 64, 256)),
    "panel-bf16": ((0.1, 0.05), (1, 64, 256)),
    "panel-int8": ((0.1, 0.05), (1, 64, 256)),
    "pairs-int16": ((0.5, 0.3), (64, 256)),
}
"""Kernel -> shares kept, rows."""


def support(format: str, density: float) -> Support:
    """A random support of the format's units."""
    height, width = UNITS.get(format, (1, 1))
    kept = torch.rand(SHAPE[0] // height, SHAPE[1] // width) < density
    return Support.from_mask(kept.repeat_interleave(height, dim=0).repeat_interleave(width, dim=1))


def lines(name: str, density: float, rows: int, isas: list[str], rounds: int) -> list[Line]:
    kernel, extension = KERNELS.get(name), native()
    assert extension is not None
    weight, x, kept = torch.randn(SHAPE), torch.randn(rows, SHAPE[1]), support(kernel.format, density)
    packed = FORMATS.get(kernel.format).pack(weight, kept, dtype=kernel.value_dtype)

    def run(isa: str):
        extension.use(isa)
        return kernel(x, packed, None)

    narrow, wide = isas
    runs = {wide: lambda: run(wide), narrow: lambda: run(narrow), "torch fp32": lambda: linear(x, weight)}
    timings = measure.compare(runs, rounds=rounds)
    extension.use(wide)
    case = f"{name}, {density:.0%} kept, {rows} row{'s' * (rows > 1)}"
    return [line(case, timings, wide, peer) for peer in (narrow, "torch fp32")]


def main() -> None:
    given = arguments(__doc__ or "")
    isas = [name for name in ORDER if name in features().get("built", ())][-2:]
    if len(isas) < 2:
        sys.exit("The extension is not built, or for one instruction set only: there is nothing to compare.")
    cases = [(name, d, rows) for name, (shares, many) in CASES.items() for d in shares for rows in many]
    with torch.inference_mode():
        found = [entry for case in (cases[:4] if given.quick else cases) for entry in lines(*case, isas, given.rounds)]
    show(found, f"{SHAPE[0]}x{SHAPE[1]}, {given.threads} threads")
    store("instructions", found, given.json)


if __name__ == "__main__":
    main()
