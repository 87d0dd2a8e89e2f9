"""Which packed form is fastest for one row of x? Every form at each sparsity beside dense and sparse peers, weights cold.

Peers: torch's float32 and bfloat16 products, its weight-only int8 product, torch.sparse CSR, and ONNX Runtime, scipy and numba where installed.

    python benchmarks/kernels/one_row.py --threads 1
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from cold import copies, product, turning
from common import Line, arguments, line, show, store

from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS, Call, measure
from sparseworks.exec.rivals import RIVALS

Contenders = dict[str, Callable[[], Any]]
SUFFIXES = ("fp32", "bf16", "int8")


def dense_peers(weight: torch.Tensor, x: torch.Tensor) -> Contenders:
    """torch's products with every weight."""
    side = weight.shape[1]
    full = turning([weight.clone() for _ in range(copies(4 * weight.numel()))])
    half = turning([weight.bfloat16() for _ in range(copies(2 * weight.numel()))])
    scale = (weight.abs().amax(dim=1) / 127).bfloat16()
    whole = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    int8, narrow = turning([whole.clone() for _ in range(copies(weight.numel()))]), x.bfloat16()
    assert side == x.shape[1]
    return {
        "torch fp32": lambda: F.linear(x, full()),
        "torch bf16": lambda: F.linear(narrow, half()),
        "torch int8 weight-only": lambda: torch._weight_int8pack_mm(narrow, int8(), scale),
    } | onnx_peers(weight, x)


def onnx_peers(weight: torch.Tensor, x: torch.Tensor) -> Contenders:
    """ONNX Runtime's, where it is installed."""
    peers, every = {}, Support.full(tuple(weight.shape))
    for name, size in (("onnxruntime fp32", 4), ("onnxruntime int8 (dynamic)", 1)):
        if find_spec("onnxruntime") and find_spec("onnx"):
            forms = turning([RIVALS.get(name).build(weight, every) for _ in range(copies(size * weight.numel()))])
            peers[name] = lambda forms=forms: forms()(x)
    return peers


def sparse_peers(weight: torch.Tensor, support: Support, x: torch.Tensor) -> Contenders:
    """torch's CSR, and scipy's and numba's where they are installed."""
    masked = weight * support.mask()
    count, column = copies(8 * support.count), x.T.contiguous()
    csr = turning([masked.to_sparse_csr() for _ in range(count)])
    peers: Contenders = {"torch CSR": lambda: csr() @ column}
    if find_spec("scipy"):
        from scipy.sparse import csr_matrix

        scipy, flat = turning([csr_matrix(masked.numpy()) for _ in range(count)]), x[0].numpy()
        peers["scipy CSR"] = lambda: scipy() @ flat
    if find_spec("numba") and find_spec("scipy"):
        peers["numba CSR"] = _numba([csr_matrix(masked.numpy()) for _ in range(count)], x[0].numpy())
    return peers


def _numba(forms: list[Any], x: Any) -> Callable[[], Any]:
    import numba
    import numpy as np

    @numba.njit(fastmath=True)
    def multiply(ptr, columns, values, x, y):
        for n in range(y.size):
            total = np.float32(0)
            for e in range(ptr[n], ptr[n + 1]):
                total += values[e] * x[columns[e]]
            y[n] = total

    y, turn = np.empty(forms[0].shape[0], np.float32), turning(forms)

    def run() -> None:
        form = turn()
        multiply(form.indptr, form.indices, form.data, x, y)

    return run


def supports(side: int, sparsity: float) -> dict[str, Support]:
    """One support of each kind that some format needs."""
    keep = round((1 - sparsity) * 256)
    of_256 = torch.rand(side, side // 256, 256).argsort(dim=-1).argsort(dim=-1) < keep
    panels = (torch.rand(side // 16, side) >= sparsity).repeat_interleave(16, dim=0)
    return {
        "any": Support.from_mask(torch.rand(side, side) >= sparsity),
        f"{keep}:256": Support.from_mask(of_256.reshape(side, side)),
        "16 rows": Support.from_mask(panels),
    }


def ours(sparsity: float) -> dict[str, tuple[str, ...]]:
    """Kernels worth running on each kind of support."""
    shown = {
        "any": ("bitmask",) if sparsity <= 0.5 else ("bitmask", "csr16"),
        ":256": ("balanced",),
        "16 rows": ("panel",),
    }
    return {kind: tuple(f"{name}-{s}" for name in names for s in SUFFIXES) for kind, names in shown.items()}


def measured(side: int, sparsity: float, rounds: int) -> list[Line]:
    """Lines of every form against torch's float32 product, and of `any` support against torch's CSR."""
    weight, x, lines = torch.randn(side, side), torch.randn(1, side), []
    limits = measure.ceilings(working_set=128 << 20)
    for kind, support in supports(side, sparsity).items():
        names = next(n for k, n in ours(sparsity).items() if kind.endswith(k))
        contenders = {**dense_peers(weight, x), **(sparse_peers(weight, support, x) if kind == "any" else {})}
        peers = list(contenders)
        dense = [f"gemv-{s}" for s in SUFFIXES] if kind == "any" else []
        contenders |= {name: product(name, weight, support, lambda: x) for name in (*names, *dense)}
        with torch.inference_mode():
            timings = measure.compare(contenders, rounds=rounds, block_us=5000.0)
        case = f"{side}x{side} {sparsity:.0%} {kind}"
        for name in (*names, *dense):
            kernel, call = KERNELS.get(name), Call(1, (side, side), support.density, threads=torch.get_num_threads())
            nbytes = FORMATS.get(kernel.format).nbytes(support, kernel.value_dtype)
            bound = measure.bound_us(call, nbytes, support.count, limits)
            against = ["torch fp32", *(["torch CSR"] if name in names and kind == "any" else [])]
            lines += [line(case, timings, name, peer, bound) for peer in against]
        lines += [line(case, timings, peer, "torch fp32") for peer in peers[1:]]
    return lines


def main() -> None:
    given = arguments(
        "One row of x, weights cold.", side={"type": int, "default": 4096, "help": "inputs, times of 256"}
    )
    side, shares = (512, (0.9,)) if given.quick else (given.side, (0.5, 0.7, 0.8, 0.9, 0.95))
    lines = [entry for share in shares for entry in measured(side, share, 3 if given.quick else given.rounds)]
    show(lines, f"One row, {given.threads} threads, weights cold")
    store("one_row", lines, given.json)


if __name__ == "__main__":
    main()
