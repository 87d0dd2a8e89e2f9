"""What do methods of sparse prefill save, selection included, and what do they lose, beside torch's dense attention and FlexAttention?

Smooth tokens (AR(1)) whose attention is concentrated, causal, head size 64. Every method runs at the density asked for, so that
mass recall and error stand beside time; `oracle_blocks` computes the whole map first and is the most that blocks can hold. The
ceiling is the arithmetic peak on the kept pairs; the dense line says where a method pays. Of methods that keep blocks the attention
alone stands beside compiled FlexAttention over the same blocks, whose mask is made beforehand. Methods that take over five times as
long as dense attention are called once, those that take ten times as long are not tried on longer texts. A run that was cut off goes on with the length where it stopped.

    python benchmarks/attention/prefill.py --threads 2 --density 0.1 --json benchmarks/results/attention/prefill
"""

from __future__ import annotations

import dataclasses
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Line, arguments, line, show, store, table

from sparseworks.attention import AttentionMethod, Heads, Kept, sparse_attention
from sparseworks.attention.kept import attend_kept
from sparseworks.core.errors import SparseworksError
from sparseworks.core.published import METHODS
from sparseworks.evaluate.sequences import qkv, rel_l2
from sparseworks.exec import measure
from sparseworks.jobs.journal import Journal

JOURNAL = Path("out") / "benchmarks" / "prefill_methods.json"
LENGTHS = {4096: 8, 8192: 4, 16384: 2, 32768: 1}
METHODS_SHOWN = ("sink_window", "pooled_blocks", "spargeattn", "anchor_attention", "hip", "vertical_slash", "flexprefill",
                 "power_attention")  # fmt: skip
ROWS = 64  # queries whose recall is looked at
BLOCK = 64
D = 64
PATIENCE, HOPELESS = 5.0, 10.0
"""Times dense attention, from which on one call is enough, and from which on no longer text is tried."""


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
    """Mass on kept pairs, over evenly spaced queries: one row of keys at a time."""
    held = []
    for row in range(heads.queries // ROWS - 1, heads.queries, heads.queries // ROWS):
        rows = slice(row, row + 1)
        weights = heads.scores(rows).softmax(-1)
        held.append(weights if kept is None else weights * kept.tokens(heads, rows))
    return float(torch.cat(held, 2).sum(-1).mean())


def by_blocks(kept: Kept | None) -> bool:
    """Whether what is kept are blocks that FlexAttention takes too."""
    unit = None if kept is None else kept.unit
    return unit is not None and bool(unit.rows and unit.cols) and not (unit.rows % BLOCK or unit.cols % BLOCK)  # type: ignore[operator]


def not_later(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """Inside the blocks of the diagonal."""
    return j <= i


def block_mask(heads: Heads, kept: Kept) -> Any:
    """The kept blocks as FlexAttention lists them: whole ones below the diagonal, masked ones on it; never queries x keys."""
    from torch.nn.attention.flex_attention import BlockMask

    count = -(-heads.keys // BLOCK)
    mask = kept.mask.repeat_interleave((kept.unit.rows or 1) // BLOCK, -2)
    mask = mask.repeat_interleave((kept.unit.cols or 1) // BLOCK, -1)[..., :count, :count]
    mask = (mask & torch.ones(count, count, dtype=torch.bool).tril()).expand(1, heads.heads, -1, -1)
    diagonal = torch.eye(count, dtype=torch.bool)
    lists = []
    for part in (mask & diagonal, mask & ~diagonal):
        order = part.byte().argsort(dim=-1, descending=True, stable=True)
        lists += [part.sum(-1, dtype=torch.int32), order.int()]
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=not_later)


def flex(heads: Heads, kept: Kept, wanted: torch.Tensor) -> Callable[[], torch.Tensor] | None:
    """Compiled FlexAttention over the kept blocks, checked; None, and why, where it does not compile."""
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = 64  # one graph a length and head count
    run, mask = torch.compile(flex_attention, dynamic=False), block_mask(heads, kept)
    call = lambda: run(heads.q, heads.k, heads.v, block_mask=mask)  # noqa: E731
    try:
        torch.testing.assert_close(call(), wanted, rtol=1e-3, atol=1e-3)
    except Exception as error:  # the compiler's errors are of many kinds
        print(f"FlexAttention at {heads.keys} tokens: {type(error).__name__}: {str(error)[:200]}")
        return None
    return call


def at_length(tokens: int, count: int, names: str, args: Namespace) -> dict[str, list[dict[str, Any]]]:
    """Times and losses of every method at one length."""
    q, k, v = qkv(tokens, heads=count, shared=0.7, scale=1.15, seed=0)
    heads = Heads(q, k, v, layer=31, layers=32)  # deep enough for methods that leave the first layers dense
    sdpa(q, k, v, is_causal=True)
    runs: dict[str, Callable[[], Any]] = {"SDPA": lambda: sdpa(q, k, v, is_causal=True)}
    dense, quality, pairs = runs["SDPA"](), list[dict[str, Any]](), list[tuple[str, str, float]]()
    slow = dict[str, tuple[float, float]]()
    dense_us = _once(runs["SDPA"])[1]
    for method in chosen(names, args.density):
        fresh = lambda m=method: sparse_attention(heads.with_(memory={}), m)  # noqa: E731
        try:
            ((out, _), kept), us = _once(fresh)
        except SparseworksError as error:
            print(f"{method.name} at {tokens} tokens: {error}")
            continue
        density = 1.0 if kept is None else kept.density(heads)
        quality.append(
            {
                "tokens": tokens, "heads": count, "method": method.name, "density": density,
                "recall": recall(heads, kept), "rel_l2": float(rel_l2(out, dense)),
            }
        )  # fmt: skip
        if us > PATIENCE * dense_us:
            slow[method.name] = us, density
            continue
        runs[method.name] = fresh
        pairs.append((method.name, "SDPA", density))
        beside = flex(heads, kept, out) if args.flex and kept is not None and by_blocks(kept) else None
        if beside is not None and kept is not None:
            ours, theirs = f"{method.name}, its blocks alone", f"FlexAttention, blocks of {method.name}"
            runs |= {ours: lambda kept=kept: attend_kept(heads, kept), theirs: beside}
            pairs += [(ours, theirs, density), (theirs, "SDPA", density)]
    timings = measure.compare(runs, rounds=args.rounds, warmup=2 if tokens < 16384 else 1)
    peak = measure.ceilings().flops
    whole = 1e6 * 4 * D * count * tokens * tokens / 2 / peak
    case = f"{tokens} tokens, {count} heads"
    lines = [line(case, timings, ours, peer, density * whole) for ours, peer, density in pairs]
    dense_us = timings["SDPA"].us
    for name, (us, density) in slow.items():
        ratio = dense_us / us
        lines.append(Line(f"{case}, one call", name, "SDPA", us, dense_us, ratio, ratio, ratio, 0.0, density * whole))
    return {"lines": [dataclasses.asdict(entry) for entry in lines], "quality": quality}


def _once(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its microseconds."""
    began = time.perf_counter()
    found = call()
    return found, 1e6 * (time.perf_counter() - began)


def main() -> None:
    args = arguments(
        __doc__ or "",
        density={"type": float, "default": 0.1, "help": "share of the pairs, for methods that take one"},
        methods={"default": ",".join(METHODS_SHOWN), "help": "names, comma-separated"},
        longest={"type": int, "default": 32768, "help": "tokens at most"},
        flex={"action": "store_true", "help": "also FlexAttention, which compiles first"},
    )
    lengths = {n: h for n, h in LENGTHS.items() if n <= args.longest}
    if args.quick:
        args.rounds, lengths = 2, {1024: 1}
    setting = [args.threads, args.rounds, args.density, args.methods, args.flex]
    journal = Journal(None if args.quick else JOURNAL, f"prefill {setting}")
    made: list[dict[str, list[dict[str, Any]]]] = []
    for tokens, count in lengths.items():
        hopeless = {entry["ours"] for m in made for entry in m["lines"] if entry["ratio"] < 1 / HOPELESS}
        names = ",".join(n for n in args.methods.split(",") if n not in hopeless)
        with torch.no_grad():
            one = partial(at_length, tokens, count, names, args)
            made.append(journal.keep(f"{tokens} x {count}", one))
    lines, quality = [Line(**entry) for m in made for entry in m["lines"]], [q for m in made for q in m["quality"]]
    show(lines, f"Prefill with selection, {args.threads} threads")
    head = ("tokens", "method", "density", "mass recall", "rel. L2")
    rows = [
        (q["tokens"], q["method"], f"{q['density']:.1%}", f"{q['recall']:.3f}", f"{q['rel_l2']:.3f}") for q in quality
    ]
    table("What is lost", head, [tuple(map(str, r)) for r in rows])
    if store("prefill_methods", lines, args.json, quality=quality) and journal.path:
        journal.path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
