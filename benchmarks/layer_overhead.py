"""What does a sparse layer cost beyond its kernel? At batch 1 on small layers the way to the kernel decides.

Contenders, in turn: `F.linear` on the dense weight, `nn.Linear`, `SparseLinear`, the kernel alone on the packed form, the registered op
(the way of `torch.compile`, autograd and autocast), and the bare function of the extension with addresses and output ready. The empty layer (16 x 16) shows the overhead bare.

    python benchmarks/layer_overhead.py --threads 1 --json layer_overhead
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Line, arguments, line, show, store, table
from torch import nn

import sparseworks as sw
from sparseworks.exec import KERNELS, Call, SparseLinear, measure
from sparseworks.exec.kernels.cpu import NativeKernel
from sparseworks.exec.race import candidates

SHAPES = ((16, 16), (384, 384), (1536, 384), (384, 1536), (4096, 4096))


def contenders(linear: nn.Linear, sparse: SparseLinear, x: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Name -> call; all compute the layer's output for `x`."""
    kernel, packed, bias = KERNELS.get(sparse.rungs[0][1]), sparse.forms[0], sparse.bias
    parts, spec, (out, width) = list(packed.parts.values()), sparse._spec, linear.weight.shape
    ways = {
        "F.linear": lambda: nn.functional.linear(x, linear.weight, linear.bias),
        "nn.Linear": lambda: linear(x),
        "SparseLinear": lambda: sparse(x),
        "kernel": lambda: kernel(x, packed, bias),
        "op": lambda: torch.ops.sparseworks.linear(x, bias, parts, spec, out, width),
    }
    if isinstance(kernel, NativeKernel):
        run, y = kernel.entry_point(), x.new_empty(1, out)
        addresses = (x.data_ptr(), y.data_ptr(), 0 if bias is None else bias.data_ptr())
        numbers = (*addresses, 1, torch.get_num_threads(), *kernel.arguments(packed))
        ways["raw"] = lambda: run(*numbers) or y
    return ways


def measured(shape: tuple[int, int], density: float, name: str | None, rounds: int) -> tuple[list[Line], list[str]]:
    """Lines against the dense layer, and a row of overheads."""
    linear = nn.Linear(shape[1], shape[0])
    keep = max(1, round(shape[1] * density))
    support = sw.select(linear.weight.detach().abs(), sw.Pattern.parse("fan-in"), keep)
    call = Call(1, shape, support.density, threads=torch.get_num_threads())
    name = name or next((k for k in candidates(support, call, [torch.float32])[0] if k.startswith("csr16")), "dense")
    sparse = SparseLinear.from_linear(linear, support, kernel=name)
    x = torch.randn(1, shape[1])
    with torch.inference_mode():
        timings = measure.compare(contenders(linear, sparse, x), rounds=rounds)
    limits = measure.ceilings(working_set=sparse.nbytes)
    bound = measure.bound_us(call, sparse.nbytes, support.count, limits)
    case = f"{shape[0]}x{shape[1]} {support.density:.0%} {name}"
    lines = [
        line(case, timings, "SparseLinear", "F.linear", bound),
        line(case, timings, "kernel", "F.linear", bound),
        line(case, timings, "nn.Linear", "F.linear"),
    ]
    us = {k: t.us for k, t in timings.items()}
    raw = us.get("raw", float("nan"))
    ways = [
        us["SparseLinear"] - raw,
        us["F.linear"] - raw,
        us["SparseLinear"] - us["kernel"],
        us["op"] - us["kernel"],
        us["nn.Linear"] - us["F.linear"],
    ]
    return lines, [case, *(f"{value:.2f}" for value in ways)]


def main() -> None:
    given = arguments(
        "Overhead per sparse layer at batch 1, weights hot in the cache.",
        density={"type": float, "default": 0.1, "help": "share of weights kept in every row"},
        kernel={"default": None, "help": "name of the kernel; default: csr16"},
    )
    lines, overheads = [], []
    for shape in SHAPES[:2] if given.quick else SHAPES:
        new, row = measured(shape, given.density, given.kernel, 3 if given.quick else given.rounds)
        lines += new
        overheads.append(row)
    show(lines, f"One row, {given.threads} threads, weights hot")
    head = (
        "case",
        "SparseLinear - raw us",
        "F.linear - raw us",
        "SparseLinear - kernel us",
        "op - kernel us",
        "nn.Linear - F.linear us",
    )
    table("Overhead of the way to the kernel", head, overheads)
    store("layer_overhead", lines, given.json, overheads=[dict(zip(head, row, strict=True)) for row in overheads])


if __name__ == "__main__":
    main()
