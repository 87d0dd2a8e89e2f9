"""What does one token cost in one layer behind a long context, by each way of reading or holding less of it, and what is lost?

The shape of LLaMA 3.2 1B: 32 query heads, 8 key heads of 64, float32, batch 1. Two texts: smooth keys (AR(1)) with single ones among them
that every query attends to, one in 256, which pages and clusters can hardly hold; and smooth keys where queries look at what is alike,
the nearest above all. Time is taken on the first. The peer is torch's SDPA over a cache with room, the heads of a group as rows of one product: 2.7 times as
fast here as `enable_gqa`. Beside it stand what transformers does (the cache is copied at every token, then SDPA with `enable_gqa`) and
compiled FlexAttention, over everything and over the pages that `quest` chose, whose mask is made beforehand. Methods run through
their own caches, selection and storing of the token included; the prompt is stored without being computed. The ceiling is the bytes that a
step must read over the memory bandwidth. A run that was cut off goes on with the context where it stopped.

    python benchmarks/attention/decode.py --threads 2 --rounds 3 --json benchmarks/results/attention/decode
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Line, arguments, line, show, store, table

from sparseworks.attention import AttentionMethod, Heads, Kept, pages
from sparseworks.attention.attending import Attending
from sparseworks.attention.cache.hf import layer_for
from sparseworks.attention.cache.layer import Call, KVLayer
from sparseworks.attention.cache.method import CacheMethod
from sparseworks.attention.cache.paged import PagedLayer, pages_of
from sparseworks.attention.cache.ragged import RaggedLayer
from sparseworks.attention.cache.shadow import placeholder
from sparseworks.attention.cache.shadowed import ShadowedLayer
from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.scores import Centroids
from sparseworks.attention.select import select
from sparseworks.core.published import METHODS
from sparseworks.core.support import Support
from sparseworks.evaluate.sequences import QKV, qkv, rel_l2
from sparseworks.exec import measure
from sparseworks.exec.attention.pages import PAGE
from sparseworks.jobs.journal import Journal

JOURNAL = Path("out") / "benchmarks" / "decode_methods.json"
CONTEXTS = (8192, 32768, 131072)
HEADS, KV_HEADS, D = 32, 8, 64
LAYER, LAYERS = 15, 16  # deep enough for methods that leave the first layers dense
LATER = 64
"""Tokens after the prompt, over and over while time is taken."""
LOOKED = 8
"""Of which recall and error are taken."""
CLUSTERS = 256
"""At most, of squeezed attention: finding them takes tokens x clusters."""
PEER = "SDPA"
TEXTS = {"single keys": 1 << 30, "smooth": 8192}
"""And the longest prompt at which they are looked at."""
NAMES = ("quest", "lserve", "double_sparsity", "squeezed_attention", "shadowkv", "snapkv", "streaming_llm", "mustafar")


def methods(names: str, share: float, tokens: int) -> list[AttentionMethod | CacheMethod]:
    """The methods, each set to read or hold that share of the prompt; those that hold everything in another form as they are."""
    kept = max(1, round(share * tokens))
    changes: dict[str, dict[str, Any]] = {
        "quest": {"density": share, "pattern": pages(PAGE)},
        "squeezed_attention": {"density": share, "score": Centroids(min(0.05, CLUSTERS / tokens))},
        "streaming_llm": {"always": Sink(4) | Window(max(1, kept - 4))},
        "mustafar": {},
    }
    found = []
    for name in names.split(","):
        if name not in METHODS:
            print(f"{name}: not registered, left out")
            continue
        found.append(METHODS.get(name).with_(**changes.get(name, {"density": share})))
    return found


def text(kind: str, tokens: int) -> QKV:
    """Queries, keys and values of the prompt and of what comes later."""
    single = {"shared": 0.3, "scale": 1.25, "columns": max(1, tokens // 256)}
    how: dict[str, Any] = single if kind == "single keys" else {"shared": 0.7, "scale": 1.15}
    return qkv(tokens + LATER, D, heads=HEADS, kv_heads=KV_HEADS, seed=0, **how)


class Ours:
    """A method over its cache, which holds the prompt; every `step` stores a token and attends."""

    def __init__(self, method: AttentionMethod | CacheMethod, given: QKV, tokens: int):
        by = lambda kind: {LAYER: method} if isinstance(method, kind) else {}  # noqa: E731
        self.given, self.tokens, self.method = given, tokens, method
        self.run = Attending(by(AttentionMethod), LAYERS, by(CacheMethod), first=LAYER)
        self.run.watch = self._saw
        self.kept: Kept | None = None
        self.held: Tensor | None = None
        self.layer: KVLayer = layer_for(self.run, LAYER)
        q, k, v = (t[:, :, :tokens] for t in given)
        self.layer.lazy_initialization(k, v)
        self.layer.attend(Call(self.run, LAYER, None, q, k, v, None, None, lambda: q))

    def _saw(self, heads: Heads, kept: Kept | None) -> None:
        self.kept = kept

    def step(self, at: int) -> Tensor:
        """As `timed`, and remembers for `mask` what was held."""
        if self.evicts:
            self.held = self.layer.holding.padded()[2][0].long()  # type: ignore[attr-defined]
        return self.timed(at)

    def timed(self, at: int) -> Tensor:
        """Token `at` of those after the prompt."""
        now = slice(self.tokens + at, self.tokens + at + 1)
        q, k, v = (t[:, :, now] for t in self.given)
        return self.layer.attend(Call(self.run, LAYER, None, q, k, v, None, None, lambda: q))

    @property
    def evicts(self) -> bool:
        """Whether what is not held is gone."""
        return isinstance(self.layer, RaggedLayer) and self.layer.registered_name == "ragged"

    def mask(self, q: Tensor, keys: int) -> Tensor:
        """(heads, keys) that the last step, of this query, attended to."""
        layer = self.layer
        if isinstance(layer, PagedLayer):
            return self.pages(q).repeat_interleave(PAGE, -1)[:, :keys]
        if isinstance(layer, ShadowedLayer):
            shadow = layer.shadows[0]
            empty = placeholder(q[:, :KV_HEADS], shadow.tokens)
            heads = Heads(q, empty, empty, layer=LAYER, memory={"index": shadow.index})
            return select(heads, self.run.methods[LAYER]).tokens(heads, slice(0, 1))[0, :, 0].expand(HEADS, -1)
        if self.kept is not None:
            heads = Heads(q, *(t[:, :, :keys] for t in (self.given.k, self.given.v)))
            return self.kept.tokens(heads, slice(0, 1))[0, :, 0].expand(HEADS, -1)
        if self.held is not None:
            at = F.pad(self.held, (0, 1), value=keys - 1)  # the query saw its own token, and what went after it
            found = torch.zeros(KV_HEADS, keys + 1, dtype=torch.bool).scatter_(1, torch.where(at < 0, keys, at), True)
            return found[:, :keys].repeat_interleave(HEADS // KV_HEADS, 0)
        return torch.ones(HEADS, keys, dtype=torch.bool)

    def pages(self, q: Tensor) -> Tensor:
        """(heads, pages) of the largest bounds, the last page among them."""
        assert isinstance(self.layer, PagedLayer) and self.layer.store is not None
        held = self.layer.store.sequences[0]
        bound = held.bounds(q[0, :, 0])
        bound[:, -1] = torch.inf
        top = min(pages_of(self.run.methods[LAYER].budget, held.tokens), held.pages)  # type: ignore[arg-type]
        return torch.zeros_like(bound, dtype=torch.bool).scatter_(1, bound.topk(top, -1).indices, True)

    def must_read(self, q: Tensor) -> int:
        """Bytes of the last step: tokens that any head of a group attends to, and the index or the bounds."""
        if not isinstance(self.layer, PagedLayer):
            return self.layer.read
        chosen = self.pages(q).unflatten(0, (KV_HEADS, -1)).any(1)
        return int(chosen.sum()) * PAGE * 2 * D * 4 + chosen.numel() * 2 * D * 4

    @property
    def nbytes(self) -> tuple[int, int]:
        """Held on the device, and elsewhere."""
        return self.layer.nbytes, int(getattr(self.layer, "offloaded", 0))


def recall(mask: Tensor, q: Tensor, k: Tensor) -> float:
    """Attention mass on the mask, mean over heads."""
    weights = Heads(q, k, k).scores()[0, :, 0].softmax(-1)
    return float((weights * mask).sum(-1).mean())


def looked_at(ours: Ours, given: QKV, tokens: int) -> dict[str, Any]:
    """Mean recall, error, share of tokens and bytes over the first tokens after the prompt."""
    sums = dict.fromkeys(("density", "recall", "rel_l2", "read"), 0.0)
    for at in range(LOOKED):
        now = tokens + at
        q, (k, v) = given.q[:, :, now : now + 1], (t[:, :, : now + 1] for t in (given.k, given.v))
        out = ours.step(at)
        mask = ours.mask(q, now + 1)
        wanted = folded(q, k, v)
        parts = (float(mask.float().mean()), recall(mask, q, k), float(rel_l2(out, wanted)), ours.must_read(q))
        for name, value in zip(sums, parts, strict=True):
            sums[name] += value / LOOKED
    here, elsewhere = ours.nbytes
    return {**sums, "held": here, "held_elsewhere": elsewhere}


def folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention of one query a head, the heads of a group as rows of one product."""
    return sdpa(q.view(1, KV_HEADS, -1, D), k, v).view(q.shape)


def dense(given: QKV, tokens: int) -> Callable[[], Tensor]:
    """SDPA over a cache with room: the token is written, nothing is copied."""
    room = tokens + tokens // 8 + 1024
    held = [t.new_zeros(1, KV_HEADS, room, D) for t in (given.k, given.v)]
    for to, t in zip(held, (given.k, given.v), strict=True):
        to[:, :, :tokens] = t[:, :, :tokens]
    turn = count()

    def run() -> Tensor:
        at = next(turn) % LATER
        now = slice(tokens + at, tokens + at + 1)
        for to, t in zip(held, (given.k, given.v), strict=True):
            to[:, :, now] = t[:, :, now]
        return folded(given.q[:, :, now], *(t[:, :, : now.stop] for t in held))

    return run


def copied(given: QKV, tokens: int) -> Callable[[], Tensor]:
    """As transformers does by default."""
    cache, turn = DynamicCache(), count()
    cache.update(given.k[:, :, :tokens], given.v[:, :, :tokens], 0)

    def run() -> Tensor:
        at = tokens + next(turn) % LATER
        q, k, v = (t[:, :, at : at + 1] for t in given)
        return sdpa(q, *cache.update(k, v, 0), enable_gqa=True)

    return run


def flex(given: QKV, tokens: int, chosen: Support | None) -> Callable[[], Tensor] | None:
    """Compiled FlexAttention over these pages of each head or over all, of a cache that does not grow; None where it does not compile."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    torch._dynamo.config.recompile_limit = 64
    q, (k, v) = given.q[:, :, tokens - 1 : tokens], (t[:, :, :tokens] for t in (given.k, given.v))
    mask, run = None, torch.compile(flex_attention, dynamic=False)
    if chosen is not None:
        kept = chosen.mask()[None, :, None]
        order = kept.byte().argsort(dim=-1, descending=True, stable=True).int()
        parts = kept.sum(-1, dtype=torch.int32), order
        none = (
            torch.zeros_like(parts[0]),
            order.clone(),
        )  # one tensor given twice is one argument too few for torch 2.13's kernel
        sizes = {"seq_lengths": (1, tokens)}
        mask = BlockMask.from_kv_blocks(*none, *parts, BLOCK_SIZE=(PAGE, PAGE), **sizes)
    call = lambda: run(q, k, v, block_mask=mask, enable_gqa=True)  # noqa: E731
    try:
        if chosen is None:
            torch.testing.assert_close(call(), folded(q, k, v), rtol=1e-3, atol=1e-3)
        else:
            pairs = chosen.mask().repeat_interleave(PAGE, -1)[None, :, None, :tokens]
            torch.testing.assert_close(call(), sdpa(q, k, v, pairs, enable_gqa=True), rtol=1e-3, atol=1e-3)
    except Exception as error:  # the compiler's errors are of many kinds
        print(f"FlexAttention at {tokens} tokens: {type(error).__name__}: {str(error)[:300]}")
        return None
    return call


def losses(kind: str, tokens: int, args: Namespace) -> list[dict[str, Any]]:
    """Recall, error and bytes of every method on another text."""
    given, found = text(kind, tokens), []
    for method in methods(args.methods, args.density, tokens):
        said = looked_at(Ours(method, given, tokens), given, tokens)
        found.append({"tokens": tokens, "text": kind, "method": method.name, **said, "dense": dense_bytes(tokens)})
    return found


def dense_bytes(tokens: int) -> int:
    """Of keys and values."""
    return tokens * KV_HEADS * 2 * D * 4


def behind(tokens: int, args: Namespace) -> dict[str, list[dict[str, Any]]]:
    """Times and losses of every contender behind one context."""
    timed, *others = [kind for kind, most in TEXTS.items() if tokens <= most]
    given, further = text(timed, tokens), [entry for kind in others for entry in losses(kind, tokens, args)]
    whole = dense_bytes(tokens)
    runs: dict[str, Callable[[], Any]] = {PEER: dense(given, tokens)}
    read: dict[str, float] = {}
    quality = []
    for method in methods(args.methods, args.density, tokens):
        ours = Ours(method, given, tokens)
        found = looked_at(ours, given, tokens)
        quality.append({"tokens": tokens, "text": timed, "method": method.name, **found, "dense": whole})
        turn = count(LOOKED)
        runs[method.name] = lambda ours=ours, turn=turn: ours.timed(next(turn) % LATER)
        read[method.name] = found["read"]
        if args.flex and isinstance(ours.layer, PagedLayer):
            chosen = Support.from_mask(ours.pages(given.q[:, :, tokens - 1 : tokens])[:, : -(-tokens // PAGE)])
            call, name = flex(given, tokens, chosen), f"FlexAttention, pages of {method.name}"
            if call is not None:
                runs[name] = call
                union = chosen.mask().unflatten(0, (KV_HEADS, -1)).any(1)
                read[name] = int(union.sum()) * PAGE * 2 * D * 4
    runs["transformers: copy, SDPA"] = copied(given, tokens)
    read["transformers: copy, SDPA"] = whole
    call = flex(given, tokens, None) if args.flex else None
    if call is not None:
        runs["FlexAttention, all keys"] = call
        read["FlexAttention, all keys"] = whole
    timings = measure.compare(runs, rounds=args.rounds, warmup=2 if tokens < 100_000 else 1)
    rate = measure.ceilings(working_set=whole).bandwidth
    lines = [line(f"behind {tokens} tokens", timings, name, PEER, 1e6 * size / rate) for name, size in read.items()]
    return {"lines": [dataclasses.asdict(entry) for entry in lines], "quality": quality + further}


def main() -> None:
    args = arguments(
        __doc__ or "",
        density={"type": float, "default": 0.1, "help": "share of the prompt that is read or held"},
        methods={"default": ",".join(NAMES), "help": "names, comma-separated"},
        contexts={"type": int, "nargs": "+", "default": list(CONTEXTS), "help": "tokens of the prompt"},
        flex={"action": "store_true", "help": "also FlexAttention, which compiles first"},
    )
    if args.quick:
        args.rounds, args.contexts = 2, [1024]
    setting = [args.threads, args.rounds, args.density, args.methods, args.flex]
    journal = Journal(None if args.quick else JOURNAL, f"decode {setting}")
    with torch.no_grad():
        made = [journal.keep(str(n), lambda n=n: behind(n, args)) for n in args.contexts]
    lines, quality = [Line(**entry) for m in made for entry in m["lines"]], [q for m in made for q in m["quality"]]
    show(lines, f"One token in one layer, {args.threads} threads")
    head = ("method", "text", "tokens", "attended", "mass recall", "rel. L2", "read", "held", "elsewhere")
    share = lambda q, name: f"{q[name] / q['dense']:.1%}"  # noqa: E731
    body = [
        (q["method"], q["text"], str(q["tokens"]), f"{q['density']:.1%}", f"{q['recall']:.3f}", f"{q['rel_l2']:.3f}",
         share(q, "read"), share(q, "held"), share(q, "held_elsewhere"))
        for q in quality
    ]  # fmt: skip
    table("What is lost; bytes read in a step and held, over those of keys and values", head, body)
    if store("decode_methods", lines, args.json, quality=quality) and journal.path:
        journal.path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
