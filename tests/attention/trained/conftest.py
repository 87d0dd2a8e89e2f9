"""A small untrained decoder, and helpers that run it through gates and through what they become."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
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


def needles(rows, seed, length=48):
    """One of ten marks somewhere in filler, and which it is; a question stands at the end."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(60, 96, (rows, length), generator=g)
    wanted = torch.randint(0, 10, (rows,), generator=g)
    ids[torch.arange(rows), torch.randint(1, length - 8, (rows,), generator=g)] = 16 + wanted
    ids[:, 0], ids[:, -1] = 0, 2
    return ids, 3 + wanted


def learn(model, steps, seed=0, rate=3e-3):
    """Trained on needles; the share of right answers on others."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    model.train()
    for step in range(steps):
        ids, wanted = needles(32, 10_000 * seed + step)
        loss = F.cross_entropy(model(ids, use_cache=False, logits_to_keep=1).logits[:, -1], wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    ids, wanted = needles(128, 10**6)
    with torch.no_grad():
        return float((model(ids, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1) == wanted).float().mean())


@pytest.fixture
def model():
    """See `tiny`."""
    return tiny()


@pytest.fixture
def ids():
    """Two rows of 40 tokens, none twice: where the choice looks at values alone, equal tokens tie in the first layer, and rounding tells them apart."""
    draw = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(96, generator=draw)[:40] for _ in range(2)])


@pytest.fixture
def tools():
    """The helpers of this file."""
    return type("Tools", (), {f.__name__: staticmethod(f) for f in (tiny, step_by_step, needles, learn)})
