"""How much of a sparse decoder layer's gain do its norms, its activation and its attention eat? One token at a time.

Four layers, of TinyLlama's shape, of LLaMA 3.2 1B's and of a small one, with `--cached` tokens in the cache: dense torch, sparse
matrices with the modules as they are, with norms and gated activation in one pass each, with the whole layer on addresses
(`exec.fuse`), and the sparse products alone.

    python benchmarks/kernels/decoder.py --threads 2
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Line, arguments, line, show, store
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

import sparseworks as sw
from sparseworks.core.support import Support
from sparseworks.exec import fuse, measure
from sparseworks.exec.between import join

KERNELS = {0.5: "bitmask-bf16", 0.7: "bitmask-bf16", 0.8: "csr16-bf16", 0.9: "csr16-bf16", 0.95: "csr16-bf16"}
SHAPES = {  # hidden, intermediate, heads, key heads
    "small": (512, 1376, 8, 2),
    "TinyLlama": (2048, 5632, 32, 4),
    "LLaMA 1B": (2048, 8192, 32, 8),
}


def layers(
    config: LlamaConfig, sparsity: float | None, change: Callable[[nn.Module], nn.Module] = lambda made: made
) -> nn.ModuleList:
    """Decoder layers, dense or with every matrix packed, after `change`."""
    made = nn.ModuleList([LlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers)]).eval()
    for owner in [m for m in made.modules() if sparsity is not None]:
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.Linear):
                support = Support.from_mask(torch.rand_like(child.weight) >= sparsity)
                setattr(owner, name, sw.SparseLinear.from_linear(child, support, kernel=KERNELS[sparsity]))
    change(made)
    return made


def token(stack: nn.ModuleList, config: LlamaConfig, cached: int) -> Callable[[], Any]:
    """One token through the layers, at the position after those in the cache, which each call leaves as it was."""
    rotary, cache = LlamaRotaryEmbedding(config), DynamicCache(config=config)

    def through(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        angles = rotary(x, positions)
        for layer in stack:
            x = layer(x, position_embeddings=angles, cache=cache, position_ids=positions)
        return x

    through(torch.randn(1, cached, config.hidden_size), torch.arange(cached)[None])
    x, position = torch.randn(1, 1, config.hidden_size), torch.tensor([[cached]])

    def run() -> torch.Tensor:
        y = through(x, position)
        cache.crop(-1)
        return y

    return run


def products(stack: nn.ModuleList) -> Callable[[], Any]:
    """The sparse products of the layers alone."""
    matrices = [m for m in stack.modules() if isinstance(m, sw.SparseLinear)]
    inputs = [torch.randn(1, 1, m.in_features) for m in matrices]
    return lambda: [m(x) for m, x in zip(matrices, inputs, strict=True)]


def measured(name: str, config: LlamaConfig, sparsity: float, cached: int, rounds: int) -> list[Line]:
    """Lines against the dense layers, and of the fused layers against the same with torch between the products."""
    with torch.inference_mode():
        sparse = layers(config, sparsity)
        contenders = {
            "dense": token(layers(config, None), config, cached),
            "sparse": token(sparse, config, cached),
            "norms and gate fused": token(layers(config, sparsity, join), config, cached),
            "layer fused": token(layers(config, sparsity, fuse), config, cached),
            "products alone": products(sparse),
        }
        timings = measure.compare(contenders, rounds=rounds)
    case = f"{name} x {config.num_hidden_layers} {sparsity:.0%}, {cached} cached"
    ours = [line(case, timings, name, "dense") for name in list(contenders)[1:]]
    return [*ours, line(case, timings, "layer fused", "sparse")]


def main() -> None:
    given = arguments(
        "A decoder layer with sparse matrices, one token.",
        shapes={"nargs": "+", "choices": list(SHAPES), "default": list(SHAPES), "help": "layers"},
        sparsity={"nargs": "+", "type": float, "choices": list(KERNELS), "default": [0.7, 0.9, 0.95], "help": "zeros"},
        cached={"type": int, "default": 128, "help": "tokens in the cache"},
    )
    lines = []
    for name in given.shapes[:1] if given.quick else given.shapes:
        names = "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"
        sizes = dict(zip(names, SHAPES[name], strict=True))
        config = LlamaConfig(**sizes, num_hidden_layers=4, attn_implementation="sdpa")
        for share in given.sparsity[:1] if given.quick else given.sparsity:
            lines += measured(name, config, share, given.cached, 3 if given.quick else given.rounds)
    show(lines, f"One token through decoder layers, {given.threads} threads")
    store("decoder", lines, given.json)


if __name__ == "__main__":
    main()
