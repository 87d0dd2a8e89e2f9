"""How many questions does a small model still answer when its cache is cut, and what does the cache really take, beside kvpress?

`sparseworks/recall-lm` (four layers, trained here) reads 512 tokens with passkeys, pairs to recall, or marks to count; the cache is cut
after the prompt, then questions come token by token. `--query first`: the first question stands in the prompt, as methods that look
at its last queries expect; `none`: nothing is asked before the cache is cut. Bytes are those of the tensors that are held.

kvpress works with older versions of transformers only (0.5.5: below 5.3): give the interpreter of an environment that has it, and the
same tasks run there on the same model.

    python benchmarks/attention/caches.py --peer-python /path/to/env/bin/python --json benchmarks/results/attention/caches
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import arguments, store, table

import sparseworks as sw
from sparseworks.evaluate.sequences import majority, mqar, passkey, turn_by_turn
from sparseworks.evaluate.sequences.tokens import Examples

WINDOW = 16
OURS = ("streaming_llm", "key_norm", "expected_attention", "snapkv", "adakv", "pyramidkv", "h2o")
DENSITIES = (0.5, 0.25, 0.1)


def tasks(rows: int) -> dict[str, Examples]:
    return {
        "passkey": passkey(rows, 512, decoys=2, seed=1),
        "pairs, 4 turns": mqar(rows, 512, pairs=16, turns=4, seed=1),
        "majority": majority(rows, 512, marks=40, seed=1),
    }


def ours(model: torch.nn.Module, density: float, early: bool, examples: Examples) -> Iterator[dict[str, Any]]:
    """Every method of the cache at this density; the window within the budget."""
    from sparseworks.attention.masks import Sink, Window

    for name in OURS:
        method = sw.method(name)
        if method.score is None:
            method = method.with_(always=Sink(4) | Window(round(density * 512) - 4))
        else:
            method = method.with_(density=density, always=Window(WINDOW))
        with sw.attention(model, method) as run:
            found = turn_by_turn(model, examples, run.cache, question_in_prompt=early, batch=len(examples.ids))
        yield {
            "method": name,
            "library": "sparseworks",
            "accuracy": found.value,
            "bytes": run.held.nbytes,
            **found.details,
        }


def peers(model: torch.nn.Module, density: float, early: bool, examples: Examples) -> Iterator[dict[str, Any]]:
    """The presses of kvpress that have a counterpart."""
    import kvpress
    from transformers import DynamicCache

    ratio = 1 - density
    snap = lambda: kvpress.SnapKVPress(compression_ratio=ratio, window_size=WINDOW)  # noqa: E731
    presses: dict[str, Callable[[], Any]] = {
        "streaming_llm": lambda: kvpress.StreamingLLMPress(compression_ratio=ratio, n_sink=4),
        "key_norm": lambda: kvpress.KnormPress(compression_ratio=ratio),
        "expected_attention": lambda: kvpress.ExpectedAttentionPress(compression_ratio=ratio),
        "snapkv": snap,
        "adakv": lambda: kvpress.AdaKVPress(snap()),
        "pyramidkv": lambda: kvpress.PyramidKVPress(compression_ratio=ratio, window_size=WINDOW),
        "tova": lambda: kvpress.TOVAPress(compression_ratio=ratio),
    }
    for name, make in presses.items():
        caches: list[Any] = []

        def fresh(caches: list[Any] = caches) -> Any:
            caches.append(DynamicCache())
            return caches[-1]

        try:
            with make()(model):
                found = turn_by_turn(model, examples, fresh, question_in_prompt=early, batch=len(examples.ids))
        except Exception as error:  # what a press cannot do is its own matter, and is reported
            yield {"method": name, "library": "kvpress", "error": f"{type(error).__name__}: {error}"[:200]}
            continue
        size = sum(t.untyped_storage().nbytes() for layer in caches[-1].layers for t in (layer.keys, layer.values))
        yield {"method": name, "library": "kvpress", "accuracy": found.value, "bytes": size, **found.details}


def rows(
    model: torch.nn.Module, args: Namespace, one: Callable[..., Iterator[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    count = 8 if args.quick else args.rows
    for early in (True, False):
        for task, examples in tasks(count).items():
            whole = 2 * 4 * model.config.num_hidden_layers * model.config.num_key_value_heads * count
            whole *= model.config.head_dim * examples.ids.shape[1]
            for density in DENSITIES:
                facts = {"task": task, "density": density, "query": "first" if early else "none", "dense_bytes": whole}
                for row in one(model, density, early, examples):
                    yield facts | row


def main() -> None:
    args = arguments(
        __doc__ or "",
        rows={"type": int, "default": 64, "help": "examples of each task"},
        peer_python={"default": "", "help": "interpreter of an environment with kvpress"},
        peer={"action": "store_true", "help": "run kvpress here and print JSON (used by the script itself)"},
    )
    model = sw.load("sparseworks/recall-lm").float().eval()
    with torch.inference_mode():
        if args.peer:
            print(json.dumps(list(rows(model, args, peers))))
            return
        found = list(rows(model, args, ours))
        dense = {t: turn_by_turn(model, e).value for t, e in tasks(8 if args.quick else args.rows).items()}
    if args.peer_python:
        command = [args.peer_python, __file__, "--peer", "--rows", str(args.rows), *(["--quick"] if args.quick else [])]
        found += json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    show(found, dense)
    store("caches", [], args.json, rows=found, dense=dense)


def show(found: list[dict[str, Any]], dense: dict[str, float]) -> None:
    cases = dict.fromkeys((r["task"], r["query"], r["method"], r["library"]) for r in found)
    lines = []
    for case in cases:
        mine = {r["density"]: r for r in found if (r["task"], r["query"], r["method"], r["library"]) == case}
        cells = [_cell(mine[d]) if d in mine else "" for d in DENSITIES]
        lines.append((case[0], case[1], f"{dense[case[0]]:.2f}", case[2], case[3], *cells))
    heads = ("task", "query in prompt", "dense", "method", "library", *(f"{d:.0%}: right, bytes" for d in DENSITIES))
    table("Questions answered, and bytes of the cache over dense", heads, lines)


def _cell(row: dict[str, Any]) -> str:
    return row["error"][:24] if "error" in row else f"{row['accuracy']:.2f}, {row['bytes'] / row['dense_bytes']:.0%}"


if __name__ == "__main__":
    main()
