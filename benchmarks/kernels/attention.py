"""How fast is attention over kept blocks (prefill) and over chosen pages (decode), beside torch's dense attention?

Prefill: causal, random blocks of 64 plus the diagonal, head size 64; the ceiling is the arithmetic peak on the kept blocks.
Decode: one query, eight heads, a new random query each call, scoring and selection included; the ceiling is the bytes of the
chosen pages and of one bound of every page. `--flex` adds flex_attention over 10 and 15 % of the blocks of 4096 tokens, if it
compiles within a minute each.

    python benchmarks/kernels/attention.py --threads 1 --json attention
"""

from __future__ import annotations

import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Line, arguments, line, show, store

import sparseworks as sw
from sparseworks.core.support import Support
from sparseworks.exec import measure
from sparseworks.exec.attention import KeyPages

BLOCK, D, HEADS = 64, 64, 8
PREFILL = {4096: 8, 8192: 4, 16384: 1}
KEPT, PAGES = (0.05, 0.1, 0.2, 0.5, 1.0), (0.05, 0.1, 1.0)


def kept_blocks(heads: int, blocks: int, share: float) -> Support:
    """The diagonal and random blocks below it, `share` of the causal blocks of every head."""
    causal = torch.ones(blocks, blocks).tril().bool()
    score = torch.rand(heads, blocks, blocks) + 2 * torch.eye(blocks)
    score = score.masked_fill(~causal, -1.0).flatten(1)
    count = max(blocks, round(share * int(causal.sum())))
    chosen = torch.zeros(score.shape, dtype=torch.bool).scatter_(1, score.topk(count, dim=1).indices, True)
    return Support.from_mask(chosen.view(heads, blocks, blocks))


def flex(q, k, v, support: Support):
    """Compiled flex_attention over the same blocks."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    kept = support.mask()

    def rule(b, h, i, j):
        return kept[h, i // BLOCK, j // BLOCK] & (j <= i)

    tokens = q.shape[2]
    mask = create_block_mask(rule, None, q.shape[1], tokens, tokens, device="cpu", BLOCK_SIZE=BLOCK)
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=mask)


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """TimeoutError after so many seconds, where the system has alarms."""

    def stop(signum: int, frame: object) -> None:
        raise TimeoutError(f"not within {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def flex_lines(args: Namespace) -> list[Line]:
    """Ours beside compiled flex_attention, which takes the same blocks; says so where that does not compile."""
    tokens, heads = (512, 2) if args.quick else (4096, 8)
    q, k, v = (torch.randn(1, heads, tokens, D) for _ in range(3))
    lines = []
    for share in (0.1, 0.15):
        support = kept_blocks(heads, tokens // BLOCK, share)
        runs: dict[str, Callable[[], torch.Tensor]] = {"ours": lambda s=support: sw.attend(q, k, v, s, causal=True)}
        start = time.perf_counter()
        try:
            with limit(60):
                runs["flex"] = flex(q, k, v, support)
                torch.testing.assert_close(runs["flex"](), runs["ours"](), rtol=1e-3, atol=1e-3)
        except Exception as error:  # the compiler's errors are of many kinds
            print(f"flex_attention at {share:.0%} did not compile: {type(error).__name__}: {str(error)[:200]}")
            continue
        print(f"flex_attention at {share:.0%}: {time.perf_counter() - start:.0f} s to compile")
        timings = measure.compare(runs, rounds=args.rounds)
        bound = 1e6 * 4 * support.count * BLOCK**2 * D / measure.ceilings().flops
        lines.append(line(f"{tokens} tokens, {heads} heads, {share:.0%} of blocks", timings, "ours", "flex", bound))
    return lines


def prefill(tokens: int, heads: int, args: Namespace) -> list[Line]:
    q, k, v = (torch.randn(1, heads, tokens, D) for _ in range(3))
    shares = KEPT[1:3] if args.quick else KEPT
    supports = {s: kept_blocks(heads, tokens // BLOCK, s) for s in shares}
    runs = {"SDPA": lambda: sdpa(q, k, v, is_causal=True)}
    runs |= {f"{s:.0%}": lambda s=s: sw.attend(q, k, v, supports[s], causal=True) for s in shares}
    timings = measure.compare(runs, rounds=args.rounds)
    peak = measure.ceilings().flops
    lines = []
    for s in shares:
        bound = 1e6 * 4 * supports[s].count * BLOCK**2 * D / peak
        lines.append(line(f"{tokens} tokens, {heads} heads", timings, f"{s:.0%}", "SDPA", bound))
    return lines


def decode(tokens: int, args: Namespace) -> list[Line]:
    k, v = torch.randn(HEADS, tokens, D), torch.randn(HEADS, tokens, D)
    cache = KeyPages(HEADS, D, tokens=tokens)
    cache.append(k, v)
    top = {s: max(1, round(s * cache.pages)) for s in PAGES}
    runs = {"SDPA": lambda: sdpa(torch.randn(1, HEADS, 1, D), k[None], v[None])}
    runs |= {f"{s:.0%}": lambda s=s: cache.attend(torch.randn(HEADS, D), top=top[s]) for s in PAGES}
    timings = measure.compare(runs, rounds=args.rounds)
    rate = measure.ceilings(working_set=8 * HEADS * tokens * D).bandwidth
    lines = []
    for s in PAGES:
        bounds = cache.pages * D if top[s] < cache.pages else 0
        us = 1e6 * 4 * HEADS * (2 * top[s] * BLOCK * D + bounds) / rate
        lines.append(line(f"{tokens} tokens", timings, f"{s:.0%}", "SDPA", us))
    return lines


def main() -> None:
    args = arguments(__doc__ or "", flex={"action": "store_true", "help": "also compiled flex_attention"})
    lengths, caches = PREFILL, (8192, 32768, 131072)
    if args.quick:
        args.rounds, lengths, caches = 3, {1024: 2}, (4096,)
    with torch.inference_mode():
        filled = [entry for tokens, heads in lengths.items() for entry in prefill(tokens, heads, args)]
        read = [entry for tokens in caches for entry in decode(tokens, args)]
    with torch.no_grad():
        flexed = flex_lines(args) if args.flex else []
    show(filled, f"Prefill, share of causal blocks kept, {args.threads} threads")
    show(read, f"Decode, share of pages read, {args.threads} threads")
    if flexed:
        show(flexed, f"Prefill beside flex_attention, {args.threads} threads")
    store("attention", filled + flexed + read, args.json)


if __name__ == "__main__":
    main()
