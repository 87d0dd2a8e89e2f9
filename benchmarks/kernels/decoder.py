"""How much of a sparse decoder layer's gain do its norms, its activation and its attention eat? TinyLlama's layer, one token at a time.

Four layers with 128 tokens in the cache; per layer: dense torch, sparse matrices with the modules as they are, sparse matrices with
norms and gated activation in one pass each (`exec.fuse`), and the sparse products alone.

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

KERNELS = {0.5: "bitmask-bf16", 0.7: "bitmask-bf16", 0.8: "csr16-bf16", 0.9: "csr16-bf16", 0.95: "csr16-bf16"}
CACHED = 128


def layers(config: LlamaConfig, sparsity: float | None, fused: bool = False) -> nn.ModuleList:
    """Decoder layers, dense or with every matrix packed."""
    made = nn.ModuleList([LlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers)]).eval()
    for owner in [m for m in made.modules() if sparsity is not None]:
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.Linear):
                support = Support.from_mask(torch.rand_like(child.weight) >= sparsity)
                setattr(owner, name, sw.SparseLinear.from_linear(child, support, kernel=KERNELS[sparsity]))
    return fuse(made) if fused else made


def token(stack: nn.ModuleList, config: LlamaConfig) -> Callable[[], Any]:
    """One token through the layers, at the position after those in the cache, which each call leaves as it was."""
    rotary, cache = LlamaRotaryEmbedding(config), DynamicCache(config=config)

    def through(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        angles = rotary(x, positions)
        for layer in stack:
            x = layer(x, position_embeddings=angles, cache=cache, position_ids=positions)
        return x

    through(torch.randn(1, CACHED, config.hidden_size), torch.arange(CACHED)[None])
    x, position = torch.randn(1, 1, config.hidden_size), torch.tensor([[CACHED]])

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


def measured(config: LlamaConfig, sparsity: float, rounds: int) -> list[Line]:
    """Lines against the dense layers, and of the fused layers against the same with torch between the products."""
    with torch.inference_mode():
        sparse = layers(config, sparsity)
        contenders = {
            "dense": token(layers(config, None), config),
            "sparse": token(sparse, config),
            "sparse, fused": token(layers(config, sparsity, fused=True), config),
            "products alone": products(sparse),
        }
        timings = measure.compare(contenders, rounds=rounds)
    case = f"{config.num_hidden_layers} layers {sparsity:.0%}"
    ours = [line(case, timings, name, "dense") for name in list(contenders)[1:]]
    return [*ours, line(case, timings, "sparse, fused", "sparse")]


def main() -> None:
    given = arguments("A decoder layer with sparse matrices, one token.")
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    full = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}
    config = LlamaConfig(**(sizes if given.quick else full), num_hidden_layers=4, attn_implementation="sdpa")
    shares = (0.9,) if given.quick else (0.5, 0.7, 0.9, 0.95)
    lines = [entry for share in shares for entry in measured(config, share, 3 if given.quick else given.rounds)]
    show(lines, f"One token through decoder layers, {given.threads} threads")
    store("decoder", lines, given.json)


if __name__ == "__main__":
    main()
