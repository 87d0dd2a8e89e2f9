"""How much faster does a billion-parameter LLaMA generate behind a long context when it reads a tenth of the pages?

LLaMA 3.2 1B's shape with random weights; the cache holds `--tokens` random keys and values, as if the prompt had been read.
`generate` then makes `--new` tokens: dense attention over transformers' own cache (which it copies at every token), over the same
in bfloat16, over our pages read whole, and over the pages of the largest bounds. Interleaved in one process; the ceiling is the
bytes of weights, pages and bounds over the memory bandwidth.

    python benchmarks/attention/decode_model.py --threads 2 --json benchmarks/results/attention/decode_1b
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import arguments, line, show, store

import sparseworks as sw
from sparseworks.exec import measure

PAGE = 64


def llama(args: Namespace) -> LlamaForCausalLM:
    """The shape, weights drawn small."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
             "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}  # fmt: skip
    if args.quick:
        sizes |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "vocab_size": 1000}  # fmt: skip
    config = LlamaConfig(**sizes, max_position_embeddings=2 * args.tokens)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def drawn(model: LlamaForCausalLM, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    config = model.config
    shape = (1, config.num_key_value_heads, tokens, config.hidden_size // config.num_attention_heads)
    return torch.randn(shape, dtype=torch.bfloat16), torch.randn(shape, dtype=torch.bfloat16)


def generating(model: LlamaForCausalLM, ids: torch.Tensor, cache: object, new: int) -> None:
    model.generate(ids, cache=cache, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)


def dense(model: LlamaForCausalLM, k: torch.Tensor, v: torch.Tensor, args: Namespace) -> Callable[[], None]:
    """transformers' own cache; what a run has added is cropped before the next."""
    cache = DynamicCache(config=model.config)
    for layer in range(model.config.num_hidden_layers):
        cache.update(k, v, layer)

    def run() -> None:
        generating(model, torch.zeros(1, args.tokens + 1, dtype=torch.long), cache, args.new)
        cache.crop(args.tokens - cache.get_seq_length())

    return run


def paged(model: LlamaForCausalLM, k: torch.Tensor, v: torch.Tensor, share: float, args: Namespace, held: dict):
    """Our pages; one cache serves every share, since reading changes nothing."""
    method = sw.method("quest", density=share, pattern={"unit": [1, PAGE], "group": [1, None]})

    def run() -> None:
        with sw.attention(model, method) as attending:
            cache = attending.cache()
            for layer in cache.held:
                filled(layer, k, v, held)
            generating(model, torch.zeros(1, args.tokens + 1, dtype=torch.long), cache, args.new)
            cache.crop(args.tokens - cache.get_seq_length())

    return run


def filled(layer, k: torch.Tensor, v: torch.Tensor, held: dict) -> None:
    """The layer with the prompt in it: made once per layer, then handed from run to run."""
    at = layer.run.held.held.index(layer)
    layer.lazy_initialization(k, v)
    if at in held:
        layer.store = held[at]
    else:
        layer.store.append(k, v, None)
        held[at] = layer.store
    layer.seen, layer.count = k.shape[2], torch.tensor([k.shape[2]])


def main() -> None:
    args = arguments(
        __doc__ or "",
        tokens={"type": int, "default": 32768, "help": "tokens of the prompt"},
        new={"type": int, "default": 8, "help": "tokens to generate"},
    )
    if args.quick:
        args.tokens, args.rounds = 512, 2
    logging.set_verbosity_error()
    model = llama(args)
    k, v = drawn(model, args.tokens)
    held: dict = {}
    shares = (1.0, 0.1, 0.05)
    runs = {"dense, transformers' cache": dense(model, k, v, args)}
    runs |= {f"{s:.0%} of pages": paged(model, k, v, s, args, held) for s in shares}
    with torch.inference_mode():
        timings = measure.compare(runs, rounds=args.rounds)
    show(
        lines := list(_lines(model, timings, shares, args)),
        f"{args.new} tokens behind {args.tokens}, {args.threads} threads",
    )
    store("decode_model", lines, args.json)


def _lines(model: LlamaForCausalLM, timings: measure.Comparison, shares: tuple[float, ...], args: Namespace):
    config = model.config
    weights = 2 * sum(p.numel() for p in model.parameters())
    token = (
        config.num_hidden_layers * config.num_key_value_heads * 2 * 4 * config.hidden_size // config.num_attention_heads
    )
    rate = measure.ceilings(working_set=weights).bandwidth
    for share in shares:
        bounds = token * args.tokens / PAGE / 2 if share < 1 else 0
        us = 1e6 * args.new * (weights + share * token * args.tokens + bounds) / rate
        yield line(
            f"generate {args.new} behind {args.tokens}",
            timings,
            f"{share:.0%} of pages",
            "dense, transformers' cache",
            us,
        )


if __name__ == "__main__":
    main()
