"""The masked diffusion model: block-wise decoding, caches, and what the trained one can do."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError
from sparseworks.models import MaskedLM, MaskedLMConfig
from sparseworks.models.masked_lm import MASK, decode, denoise, diffusion_loss, encode

PROSE = "It was a bright day, and the whole of the town had come to see what the old man would do with his house. "


@pytest.fixture(scope="module")
def model():
    return sw.load("sparseworks/dlm")


class Certain(torch.nn.Module):
    """Says character `a + position` everywhere, more certain the further right."""

    config = MaskedLMConfig()

    def forward(self, ids):
        at = torch.arange(ids.shape[1])
        logits = torch.zeros(*ids.shape, MASK + 1)
        logits[:, at, 97 + at] = 5.0 + at
        logits[..., MASK] = 100.0
        return type("Out", (), {"logits": logits})()


def test_a_block_is_filled_from_the_most_certain_character():
    ids = torch.full((1, 8), MASK)
    ids[0, 5] = ord("!")
    assert decode(denoise(Certain(), ids, start=0, block=4)) == ["abcde!gh"]
    seen = []

    def call(tokens, at, step):
        seen.append((decode(tokens)[0], at.start, step))
        return Certain()(tokens).logits[:, at]

    denoise(Certain(), ids, start=2, block=3, steps=2, call=call)
    assert seen == [("_____!__", 2, 0), ("___de!__", 2, 1), ("__cde!__", 5, 0), ("__cde!_h", 5, 1)]
    with pytest.raises(BudgetError):
        denoise(Certain(), ids, start=8)


def test_text_goes_there_and_back():
    assert decode(encode(["ab", "c\u00e9d"])) == ["ab ", "c?d"] and encode([]).shape == (0, 0)


class Outside:
    """Keys and values of all tokens but one block, handed to the block's own in later calls."""

    def __init__(self, at):
        self.at, self.held = at, {}

    def update(self, k, v, layer):
        if layer not in self.held:
            rest = torch.ones(k.shape[2], dtype=torch.bool)
            rest[self.at] = False
            self.held[layer] = k[:, :, rest], v[:, :, rest]
            return k, v
        return tuple(torch.cat([old, new], dim=2) for old, new in zip(self.held[layer], (k, v), strict=True))


def test_a_block_on_cached_keys_equals_the_whole():
    """Nothing has changed since the cache was filled, so the block's logits are those of the full pass."""
    torch.manual_seed(0)
    model = MaskedLM(MaskedLMConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=3)).eval()
    ids, at = torch.randint(128, (2, 24)), slice(8, 14)
    cache = Outside(at)
    with torch.no_grad():
        whole = model(ids, past_key_values=cache).logits
        place = torch.arange(at.start, at.stop)[None]
        part = model(ids[:, at], position_ids=place, past_key_values=cache).logits
    assert torch.allclose(whole, model(ids).logits, atol=1e-5) and torch.allclose(part, whole[:, at], atol=1e-5)


@torch.no_grad()
def test_the_trained_model_reads_prose(model):
    prose = encode([PROSE, PROSE[20:] + PROSE[:20]])
    loss = diffusion_loss(model, prose, torch.full(prose.shape, 0.15), seed=0)
    assert float(loss) < 2.3  # 3.1 for the frequencies of characters alone
    filled = denoise(model, torch.where(torch.arange(len(PROSE)) == 25, MASK, prose[:1]), start=16, block=16)
    assert decode(filled) == [PROSE]
    near = [float(diffusion_loss(model, p, torch.full(p.shape, 0.3), seed=1)) for p in (prose, prose.flip(1))]
    assert near[0] < near[1] - 0.3  # the order of the characters matters
