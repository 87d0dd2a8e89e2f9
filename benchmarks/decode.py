"""How fast does a decoder of a billion parameters produce one token at batch 1, when 50 or 70 % of its weights are zeros?

Shapes are TinyLlama-1.1B's, weights are random and pruned by magnitude without any structure. At batch 1 every weight is read
once per token, so each contender walks through so many copies of its weights that they come from memory, as in the whole model.
The ceiling is what the bytes of the packed layer allow at the measured memory bandwidth. `--whole N` also decodes with a real
LlamaForCausalLM of N layers, with attention, cache and head: about 0.4 GiB per layer and 4 GiB more.

    python benchmarks/decode.py --threads 2 --whole 8 --json decode
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from typing import Any

import torch
from common import Line, arguments, line, show, store, table
from decode_model import BLOCK, DENSE, HIDDEN, INNER, LAYERS, VALUES, WORDS, block, decoders, planned, pruned, step
from torch import Tensor, nn

from sparseworks.core.support import Support
from sparseworks.exec import Call, measure

TOKEN = "all layers of a block"
BEYOND_CACHE = 1 << 28
ROUNDING = 1e-2
"""Largest relative difference from the masked dense layer that values rounded to bf16 explain."""


@dataclass(frozen=True)
class Contender:
    """A sparse layer or block: its name with the kernel, the module, and the microseconds that the machine allows it."""

    name: str
    module: nn.Module
    bound: float


def nbytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def rotating(module: nn.Module, x: Tensor) -> Callable[[], Any]:
    """Calls that walk through copies of the module: none of its bytes is still in a cache when its turn comes again.

    Each copy is called once beforehand: kernels check a packed form at its first call.
    """
    copies = ceil(BEYOND_CACHE / nbytes(module))
    modules = [module, *(copy.deepcopy(module) for _ in range(copies - 1))]
    for each in modules:
        each(x)
    turn = cycle(modules)
    return lambda: next(turn)(x)


def kernel(layer: nn.Module) -> str:
    """Name of the kernel that the plan chose for one row."""
    rungs = getattr(layer, "rungs", None)
    return rungs[0][1] if rungs else "dense"


def bounds(fast: nn.ModuleDict, supports: Mapping[str, Support]) -> dict[str, float]:
    """What memory and arithmetic allow each layer, in a model of `LAYERS` such blocks."""
    limits = measure.ceilings(working_set=LAYERS * nbytes(fast))
    return {
        name: measure.bound_us(Call(1, BLOCK[name]), nbytes(layer), supports[name].count, limits)
        for name, layer in fast.items()
    }


def check(dense: nn.Module, sparse: nn.Module, x: Tensor) -> None:
    """A packed layer that computes something else is refused, not timed."""
    for a, b in zip(dense(x), sparse(x), strict=True):
        error = ((a - b).norm() / a.norm()).item()
        if not error < ROUNDING:
            raise RuntimeError(f"a packed layer differs from its masked dense layer (relative error {error:.3g})")


def compared(case: str, dense: nn.Module, ours: list[Contender], x: Tensor, rounds: int) -> list[Line]:
    """One line per sparse contender and dense peer; all of them ran interleaved."""
    runs = {name: rotating(copy.deepcopy(dense).to(dtype), x.to(dtype)) for name, dtype in DENSE.items()}
    runs |= {c.name: rotating(c.module, x) for c in ours}
    timings = measure.compare(runs, rounds=rounds)
    return [line(case, timings, c.name, peer, c.bound) for c in ours for peer in DENSE]


def layers(density: float, args: Namespace) -> list[Line]:
    """Every shape of the block by itself, then the layers of the block in turn."""
    dense = block()
    supports = pruned(dense, density)
    fast = {name: planned(dense, supports, dtype) for name, dtype in VALUES.items()}
    limits = {name: bounds(module, supports) for name, module in fast.items()}
    x = torch.randn(1, INNER)
    for module in fast.values():
        check(dense, module, x)
    lines = []
    names = {shape: [n for n, s in BLOCK.items() if s == shape] for shape in BLOCK.values()}
    for (out, width), alike in names.items():
        first = alike[0]
        ours = [Contender(f"{v}, {kernel(m[first])}", m[first], limits[v][first]) for v, m in fast.items()]
        case = f"{1 - density:.0%} zeros, {out}x{width} ({', '.join(n.removesuffix('_proj') for n in alike)})"
        lines += compared(case, dense[first], ours, x[:, :width].contiguous(), args.rounds)
    ours = [Contender(f"{v}, as planned", m, sum(limits[v].values())) for v, m in fast.items()]
    return lines + compared(f"{1 - density:.0%} zeros, {TOKEN}", dense, ours, x, args.rounds)


def tokens(lines: list[Line]) -> list[dict[str, Any]]:
    """Milliseconds per token in the linear layers of all blocks: those of one block times their number."""
    per_ms = LAYERS / 1000
    return [
        {
            "case": entry.case.replace(TOKEN, f"{LAYERS} blocks"), "ours": entry.ours, "ms": entry.ours_us * per_ms,
            "peer": entry.peer, "peer ms": entry.peer_us * per_ms, "ratio": entry.ratio,
            "ceiling ms": (entry.ceiling_us or 0.0) * per_ms, "ratio at the ceiling": entry.peer_us / (entry.ceiling_us or 1.0),
        }
        for entry in lines if TOKEN in entry.case
    ]  # fmt: skip


def whole(density: float, args: Namespace) -> list[Line]:
    """One token of a real model with attention, cache and head; the ceiling counts the bytes of blocks and head."""
    models = dict(decoders(args.whole, density))
    read = {name: nbytes(model) - nbytes(model.get_input_embeddings()) for name, model in models.items()}
    rates = {name: measure.ceilings(working_set=size).bandwidth for name, size in read.items()}
    with torch.inference_mode():
        timings = measure.compare({name: step(model) for name, model in models.items()}, rounds=args.rounds)
    case = f"{1 - density:.0%} zeros, model of {args.whole} layers, hidden {HIDDEN}, {WORDS} words"
    return [line(case, timings, name, peer, 1e6 * read[name] / rates[name]) for name in VALUES for peer in DENSE]


def main() -> None:
    args = arguments(
        __doc__ or "",
        density={"type": float, "nargs": "*", "default": [0.5, 0.3], "help": "shares of weights kept"},
        whole={"type": int, "default": 0, "metavar": "LAYERS", "help": "also a real model of so many layers"},
    )
    if args.quick:
        args.rounds, args.density, args.whole = 3, args.density[:1], min(args.whole, 1)
    with torch.inference_mode():
        lines = [entry for density in args.density for entry in layers(density, args)]
    show(lines, f"One token, {args.threads} threads, weights from memory")
    summed = tokens(lines)
    rows = [[f"{v:.3g}" if isinstance(v, float) else v for v in entry.values()] for entry in summed]
    table(f"One token through the linear layers of {LAYERS} blocks", list(summed[0]), rows)
    real = [entry for density in args.density for entry in whole(density, args)] if args.whole else []
    if real:
        show(real, "One token of the whole model")
        best = [
            (e.case, name, f"{1e6 / us:.2f}") for e in real for name, us in ((e.ours, e.ours_us), (e.peer, e.peer_us))
        ]
        table("tokens per second", ("case", "contender", "tokens/s"), list(dict.fromkeys(best)))
    store("decode", lines + real, args.json, tokens=summed)


if __name__ == "__main__":
    main()
