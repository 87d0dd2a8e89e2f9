"""What do methods of sparse prefill save, selection included, and what do they lose, beside torch's dense attention?

Smooth tokens (AR(1)) whose attention is concentrated, causal, head size 64. Every method runs at the density asked for, so that
mass recall and error stand beside time; `oracle_blocks` computes the whole map first and is the most that blocks can hold. The
ceiling is the arithmetic peak on the kept pairs; the dense line says where a method pays.

    python benchmarks/attention/prefill.py --threads 2 --density 0.1 --json benchmarks/results/attention/prefill
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Line, arguments, line, show, store, table

from sparseworks.attention import AttentionMethod, Heads, Kept, sparse_attention
from sparseworks.core.errors import SparseworksError
from sparseworks.core.published import METHODS
from sparseworks.evaluate.sequences import qkv, rel_l2
from sparseworks.exec import measure

LENGTHS = {4096: 8, 8192: 4, 16384: 2, 32768: 1}
METHODS_SHOWN = ("sink_window", "pooled_blocks", "spargeattn", "anchor_attention", "hip", "vertical_slash", "flexprefill",
                 "power_attention")  # fmt: skip
ROWS = 64  # queries whose recall is looked at


def chosen(names: str, density: float) -> list[AttentionMethod]:
    """The methods at this density, those that take one."""
    found = []
    for name in names.split(","):
        if name not in METHODS:
            print(f"{name}: not registered, left out")
            continue
        method = AttentionMethod.of(name)
        found.append(method if method.score is None or method.budget.needs_scores else method.with_(density=density))
    return found


def recall(heads: Heads, kept: Kept | None) -> float:
    """Mass on kept pairs, over evenly spaced queries."""
    held = []
    for row in range(heads.queries // ROWS - 1, heads.queries, heads.queries // ROWS):
        rows = slice(row, row + 1)
        weights = heads.scores(rows).softmax(-1)
        held.append(weights if kept is None else weights * kept.tokens(heads, rows))
    return float(torch.cat(held, 2).sum(-1).mean())


def at_length(tokens: int, count: int, args: Namespace) -> tuple[list[Line], list[dict]]:
    q, k, v = qkv(tokens, heads=count, shared=0.7, scale=1.15, seed=0)
    heads = Heads(q, k, v, layer=31, layers=32)  # deep enough for methods that leave the first layers dense
    runs = {"SDPA": lambda: sdpa(q, k, v, is_causal=True)}
    dense, quality = runs["SDPA"](), []
    for method in chosen(args.methods, args.density):
        fresh = lambda m=method: sparse_attention(heads.with_(memory={}), m)  # noqa: E731
        try:
            (out, _), kept = fresh()
        except SparseworksError as error:
            print(f"{method.name} at {tokens} tokens: {error}")
            continue
        quality.append(
            {
                "tokens": tokens, "heads": count, "method": method.name,
                "density": 1.0 if kept is None else kept.density(heads), "recall": recall(heads, kept),
                "rel_l2": float(rel_l2(out, dense)),
            }
        )  # fmt: skip
        runs[method.name] = fresh
    timings = measure.compare(runs, rounds=args.rounds)
    peak = measure.ceilings().flops
    lines = []
    for q_ in quality:
        bound = 1e6 * 4 * q_["density"] * tokens * tokens / 2 * 64 * count / peak
        lines.append(line(f"{tokens} tokens, {count} heads", timings, q_["method"], "SDPA", bound))
    return lines, quality


def main() -> None:
    args = arguments(
        __doc__ or "",
        density={"type": float, "default": 0.1, "help": "share of the pairs, for methods that take one"},
        methods={"default": ",".join(METHODS_SHOWN), "help": "names, comma-separated"},
        longest={"type": int, "default": 32768, "help": "tokens at most"},
    )
    lengths = {n: h for n, h in LENGTHS.items() if n <= args.longest}
    if args.quick:
        args.rounds, lengths = 2, {1024: 1}
    lines, quality = [], []
    with torch.inference_mode():
        for tokens, count in lengths.items():
            found, said = at_length(tokens, count, args)
            lines, quality = lines + found, quality + said
    show(lines, f"Prefill with selection, {args.threads} threads")
    head = ("tokens", "method", "density", "mass recall", "rel. L2")
    rows = [
        (q["tokens"], q["method"], f"{q['density']:.1%}", f"{q['recall']:.3f}", f"{q['rel_l2']:.3f}") for q in quality
    ]
    table("What is lost", head, [tuple(map(str, r)) for r in rows])
    store("prefill_methods", lines, args.json, quality=quality)


if __name__ == "__main__":
    main()
