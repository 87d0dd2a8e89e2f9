"""The shape of a decoder with a billion parameters (TinyLlama-1.1B), and one token of a real one with its cache and head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from inspect import signature

import torch
from torch import Tensor, nn

import sparseworks as sw
from sparseworks.core.support import Support

HIDDEN, INNER, KEYS, LAYERS, WORDS = 2048, 5632, 256, 22, 32000
BLOCK = {
    "q_proj": (HIDDEN, HIDDEN), "k_proj": (KEYS, HIDDEN), "v_proj": (KEYS, HIDDEN), "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER),
}  # fmt: skip
"""Name -> (out, in) of the linear layers of one block."""
DENSE = {"dense fp32 torch": torch.float32, "dense bf16 torch": torch.bfloat16}
VALUES = {"fp32 values": torch.float32, "bf16 values": torch.bfloat16}
"""Name -> types of the kept values that the plan may use beside the weight's own."""
_PROMPT = 32


class Block(nn.ModuleDict):
    """The linear layers of one block, called one after another as when a token passes through them."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x[..., : layer.in_features]) for layer in self.values()]


class HalfHead(nn.Module):
    """The dense head in bf16, as the dense bf16 model has it."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = copy.deepcopy(head).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.bfloat16()).float()


def block() -> Block:
    return Block({name: nn.Linear(width, out, bias=False) for name, (out, width) in BLOCK.items()}).eval()


def pruned(model: nn.Module, density: float) -> dict[str, Support]:
    """Magnitude without any structure, in place; the head stays dense."""
    method = sw.method("magnitude", density=density)
    return sw.prune(model, method, skip=["lm_head"], progress=False).supports


def planned(model: nn.Module, supports: dict[str, Support], dtype: torch.dtype) -> nn.Module:
    """The model with the kernels that win at one row, timed now."""
    return sw.plan(model, supports, batch=1, dtypes=(dtype,), cache=False).apply(model)


def llama(layers: int) -> nn.Module:
    """A LLaMA of this shape with random weights."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=HIDDEN // 64 * KEYS // HIDDEN, vocab_size=WORDS, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def decoders(layers: int, density: float) -> Iterator[tuple[str, nn.Module]]:
    """Name -> whole model: dense in both types, and planned with either type of values.

    The head stays dense; it is in bf16 where values may be, as in the dense bf16 model.
    """
    model = llama(layers)
    supports = pruned(model, density)
    for name, dtype in DENSE.items():
        yield name, model if dtype is torch.float32 else copy.deepcopy(model).to(dtype)
    for name, dtype in VALUES.items():
        fast = planned(model, supports, dtype)
        if dtype is not torch.float32:
            fast.lm_head = HalfHead(model.lm_head)
        yield name, fast


def step(model: nn.Module) -> Callable[[], Tensor]:
    """Each call decodes one token after the last; a prompt lies in the cache."""
    from transformers import DynamicCache

    ids = torch.arange(_PROMPT)[None]
    cache = DynamicCache(config=model.config)
    keyword = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    with torch.inference_mode():
        model(input_ids=ids, use_cache=True, **{keyword: cache})
    last = ids[:, -1:]

    def one() -> Tensor:
        nonlocal last
        logits = model(input_ids=last, use_cache=True, **{keyword: cache}).logits
        last = logits[:, -1].argmax(dim=-1, keepdim=True)
        return logits

    return one
