"""What do methods of prefill, of decoding and of the cache cost from end to end, at a half, a quarter and a tenth, beside dense attention?

`sparseworks/recall-lm` (trained here on such tasks) reads 512 tokens and answers: a passkey, four of sixteen pairs, the commonest of
forty marks. `sparseworks/tiny-lm` (trained here) predicts a novel that it never saw, with `--data`: perplexity of windows read at once
for methods of prefill, of the last tokens of each window fed one by one for the others. Questions come token by token on the same cache, the
first of them in the prompt. Methods run as registered but for sizes that fit 512 tokens: blocks of 16, short sinks and windows. `density`
is what was asked for; what was attended to or held stands in `more`. A run that was cut off goes on where it stopped.

    OMP_NUM_THREADS=1 python benchmarks/attention/tasks.py --threads 1 --data books.jsonl.gz --json tasks
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "weights"))
from common import RESULTS, arguments
from rows import Row, Rows, hardware

import sparseworks as sw
from sparseworks.attention import AttentionMethod, blocks, pages
from sparseworks.attention.cache.method import CacheMethod
from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.method import stripes
from sparseworks.attention.methods.frontier import at_density
from sparseworks.attention.scores import AnchorGap, HeadVote, Landmarks, StreamingHeads, TreeSearch
from sparseworks.attention.timing import Always
from sparseworks.core.published import Published
from sparseworks.core.record import Record
from sparseworks.evaluate import Perplexity
from sparseworks.evaluate.sequences import Examples, majority, mqar, passkey
from sparseworks.evaluate.text import lm_stream, read_texts
from sparseworks.io import load_tokenizer
from sparseworks.jobs.frontier import ask

LENGTH = 512
DENSITIES = (0.5, 0.25, 0.1)
NOVEL = "Bleak House"
"""Of the books, the one that `scripts/train_tiny_lm.py` holds out."""
FED = 64
"""Tokens of a window that are fed one by one."""

PREFILL = (
    "sink_window",
    "oracle_blocks",
    "pooled_blocks",
    "spargeattn",
    "vertical_slash",
    "flexprefill",
    "anchor_attention",
    "hip",
)
DECODE = ("quest", "double_sparsity", "lserve", "squeezed_attention", "token_select", "shadowkv")
CACHE = ("streaming_llm", "key_norm", "expected_attention", "h2o", "snapkv", "adakv", "pyramidkv")  # fmt: skip


def sized(name: str, density: float, tokens: int = LENGTH) -> Published:
    """A method set to about this density of so many tokens."""
    count, found = max(1, round(density * tokens)), sw.method(name)
    if isinstance(found, CacheMethod):
        window = Sink(4) | Window(max(1, count - 4))
        return found.with_(always=window) if found.score is None else found.with_(density=density, always=Window(16))
    even: dict[str, Any] = {"density": density}
    changes: dict[str, dict[str, Any]] = {
        # Rows i < w of a window w see everything: the share of the triangle is 1 - (1 - w / n)^2.
        "sink_window": {"pattern": pages(1), "always": Sink(4) | Window(max(1, round(tokens * (1 - (1 - density) ** 0.5))))},
        "oracle_blocks": even | {"pattern": blocks(16)},
        "pooled_blocks": even | {"pattern": blocks(16)},
        "spargeattn": even | {"pattern": blocks(16)},
        "anchor_attention": even | {"pattern": stripes(16), "score": AnchorGap(16, 16), "always": Sink(4) | Window(16)},
        "hip": {"score": TreeSearch(count), "budget": {"count": {"value": count}}, "pattern": blocks(16, 4), "always": Sink(4) | Window(16), "schedule": Always()},
        "double_sparsity": even | {"score": replace(_score("double_sparsity"), share=1 / 8)},
        "lserve": even | {"pattern": pages(16), "always": Sink(16) | Window(32), "score": StreamingHeads(sink=16, window=32)},
        "squeezed_attention": even | {"score": replace(_score("squeezed_attention"), recent=16)},
        "token_select": even | {"score": HeadVote(16, 32), "always": Sink(16) | Window(32)},
        "shadowkv": even | {"score": Landmarks(outliers=2, local=2)},
    }  # fmt: skip
    return found.with_(**changes[name]) if name in changes else at_density(name, density, tokens)


def _score(name: str) -> Any:
    return AttentionMethod.of(name).score


# -- recall -------------------------------------------------------------------------------------------------------


def questions(rows: int) -> dict[str, Examples]:
    """One needle, four of 16 pairs, the commonest mark."""
    return {
        "passkey": passkey(rows, LENGTH, decoys=2, seed=1),
        "four of 16 pairs": mqar(rows, LENGTH, pairs=16, turns=4, seed=1),
        "majority": majority(rows, LENGTH, marks=40, seed=1),
    }


def answered(model: nn.Module, name: str, density: float, task: str, examples: Examples) -> Row:
    """Exact match of the answers."""
    method = None if name == "dense" else sized(name, density)
    found = ask(model, method, examples, task=task, density=density, batch=len(examples.ids))
    whole = _cache_bytes(model, len(examples.ids), examples.ids.shape[1])
    more: dict[str, Any] = {"turns": list(found.turns)}
    if found.nbytes:
        more["held_over_dense"] = found.nbytes / whole
    seen = found.read[1 if name in DECODE else 0]
    return row(model, name, density, seen, task, "exact match", found.value, more)


def _cache_bytes(model: Any, rows: int, tokens: int) -> int:
    config = model.config
    return 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * rows * tokens


# -- text ---------------------------------------------------------------------------------------------------------


def novel(path: Path, tokenizer: Any) -> Tensor:
    """The held-out novel of a file of books, or all of another text, as tokens."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
    from tiny_lm_text import read_books  # pyright: ignore[reportMissingImports]

    if ".jsonl" not in path.suffixes:
        return lm_stream(read_texts(path, paragraphs=False), tokenizer)
    books = read_books(path)
    return lm_stream([books[NOVEL]] if NOVEL in books else list(books.values()), tokenizer)


def at_once(model: nn.Module, windows: Tensor, name: str, density: float) -> Row:
    """Perplexity of windows that are read at once."""
    task, method = Perplexity(windows.flatten(), windows.shape[1]), None if name == "dense" else sized(name, density)
    if method is None:
        value, seen = task(model).value, 1.0
    else:
        with sw.attention(model, method) as run:
            value = task(model).value
        seen = run.density("prefill")
    return row(model, name, density, seen, "novel, read at once", "perplexity", value)


def one_by_one(model: nn.Module, windows: Tensor, name: str, density: float) -> Row:
    """Perplexity of the last tokens of each window, fed one by one on the cache that its beginning left."""
    more: dict[str, Any] = {}
    if name == "dense":
        value, seen = _fed(model, windows, None), 1.0
    else:
        with sw.attention(model, sized(name, density, windows.shape[1])) as run:
            value = _fed(model, windows, run.cache if run.caches else None)
        if run.held is not None:
            more["held_over_dense"] = run.held.nbytes / _cache_bytes(model, *windows.shape)
        seen = run.density("decode") if name in DECODE else 1.0
    return row(model, name, density, seen, f"novel, last {FED} of {windows.shape[1]} one by one", "perplexity", value, more)  # fmt: skip


def _fed(model: nn.Module, windows: Tensor, make: Callable[[], Any] | None) -> float:
    from transformers import DynamicCache

    cache, first, total = (make or DynamicCache)(), windows.shape[1] - FED, 0.0
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    spans = [(0, first), *((at, at + 1) for at in range(first, windows.shape[1] - 1))]
    with torch.inference_mode():
        for start, stop in spans:
            at = torch.arange(start, stop)[None].expand(len(windows), -1)
            logits = model(windows[:, start:stop], position_ids=at, use_cache=True, **{name: cache}).logits[:, -1]
            total += float(F.cross_entropy(logits.float(), windows[:, stop], reduction="sum"))
    return float(torch.tensor(total / (len(windows) * len(spans))).exp())


# -- rows ---------------------------------------------------------------------------------------------------------


def row(
    model: nn.Module, name: str, density: float, seen: float, task: str, metric: str, value: float,
    more: dict[str, Any] | None = None,
) -> Row:  # fmt: skip
    """One figure; `seen` is the share of the pairs that was attended to."""
    size, dense = sum(p.numel() for p in model.parameters()), name == "dense"
    record = Record(
        method=name, task=task, metric=metric, value=value, start="dense" if dense else "post-training", dynamic=not dense,
        when="never" if dense else "after", densities={"attention": min(seen, 1.0)}, kept=size, parent=size,
        structure="dense" if dense else kind(name), epochs=0, examples=0, hardware=hardware(),
        higher_is_better=metric != "perplexity", more={"attended": round(seen, 4), **(more or {})},
    )  # fmt: skip
    return Row(name, density, record)


def kind(name: str) -> str:
    """Which phase a method makes sparse."""
    return "prefill" if name in PREFILL else "decode" if name in DECODE else "cache"


def cells(names: tuple[str, ...], quick: bool) -> Iterator[tuple[str, float]]:
    """Dense, then every method at every density."""
    yield "dense", 1.0
    for name in names[:2] if quick else names:
        for density in DENSITIES[-1:] if quick else DENSITIES:
            yield name, density


def run(rows: Rows, args: Namespace) -> None:
    """Every cell of every task."""
    quick, asked = args.quick, set(args.methods.split(","))
    prefill, later = (tuple(n for n in names if n in asked) for names in (PREFILL, DECODE + CACHE))
    everything = prefill + later
    model = sw.load("sparseworks/recall-lm").float().eval()
    for task, examples in questions(args.rows).items():
        for name, density in cells(everything[:: 10 if quick else 1], quick):
            rows.add(
                f"{task} {name} {density}", lambda n=name, d=density, t=task, e=examples: answered(model, n, d, t, e)
            )
    if args.data is None:
        return
    model = sw.load("sparseworks/tiny-lm").float().eval()
    text = novel(args.data, load_tokenizer("sparseworks/tiny-lm"))
    windows = text[: args.windows * LENGTH].view(-1, LENGTH)
    for name, density in cells(prefill, quick):
        rows.add(f"at once {name} {density}", lambda n=name, d=density: at_once(model, windows, n, d))
    for name, density in cells(later, quick):
        rows.add(f"one by one {name} {density}", lambda n=name, d=density: one_by_one(model, windows, n, d))


def main() -> None:
    args = arguments(
        __doc__ or "",
        rows={"type": int, "default": 16, "help": "examples of each task"},
        windows={"type": int, "default": 4, "help": "windows of the text"},
        methods={"default": ",".join(PREFILL + DECODE + CACHE), "help": "names, comma-separated"},
        data={"type": Path, "metavar": "FILE", "help": "books as gzipped JSON lines (title, text), or a text"},
    )
    if args.quick:
        args.rows, args.windows = 4, 2
    rows = Rows("attention_tasks", {"rows": args.rows, "windows": args.windows, "length": LENGTH, "text": NOVEL}, quick=args.quick)  # fmt: skip
    run(rows, args)
    rows.show()
    path = args.json
    rows.store(None if path is None else path if path.parent != Path() else RESULTS / "attention" / path)


if __name__ == "__main__":
    main()
