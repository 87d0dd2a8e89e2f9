"""A small untrained decoder, and helpers that run it through gates and through what they become."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM


def tiny(seed: int = 0, **changes) -> LlamaForCausalLM:
    """Two layers, four query and two key heads of 16."""
    sizes = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True, "bos_token_id": 0,
        "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval()


def step_by_step(model, run, ids, first):
    """Logits after the first tokens, and after each further one, with a cache."""
    cache = run.cache() if run.caches else DynamicCache()
    found = [model(ids[:, :first], cache=cache, use_cache=True).logits]
    for at in range(first, ids.shape[1]):
        found.append(model(ids[:, at : at + 1], cache=cache, use_cache=True).logits)
    return torch.cat(found, 1)


@pytest.fixture
def model():
    """See `tiny`."""
    return tiny()


@pytest.fixture
def ids():
    """Two rows of 40 tokens."""
    return torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tools():
    """The helpers of this file."""
    return type("Tools", (), {"tiny": staticmethod(tiny), "step_by_step": staticmethod(step_by_step)})
