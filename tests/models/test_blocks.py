"""Bidirectional blocks: their attention is what the configuration names, and they load and save as transformers models do."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface

import sparseworks as sw
from sparseworks.models import MaskedLM, MaskedLMConfig, VideoDiffusion, VideoDiffusionConfig
from sparseworks.models.blocks import eager, rotated, turns

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def masked_lm():
    torch.manual_seed(0)
    return MaskedLM(MaskedLMConfig(**SMALL)).eval()


def video():
    torch.manual_seed(0)
    return VideoDiffusion(VideoDiffusionConfig(frames=3, size=8, **SMALL)).eval()


CASES = {
    "masked": (masked_lm, lambda m: m(torch.arange(40).view(2, 20)).logits),
    "video": (
        video,
        lambda m: m(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.9])),
    ),
}


@pytest.mark.parametrize("make, run", CASES.values(), ids=CASES)
def test_attention_is_looked_up_at_every_call(make, run):
    model, seen = make(), []

    def counted(module, q, k, v, attention_mask, scaling, **kwargs):
        seen.append((module.layer_idx, tuple(q.shape), kwargs.get("mark")))
        return eager(module, q, k, v, attention_mask, scaling)

    AttentionInterface.register("test-counted", counted)
    with torch.no_grad():
        sdpa = run(model)
        assert model.config._attn_implementation == "sdpa" and not seen
        for name in ("eager", "test-counted"):
            model.set_attn_implementation(name)
            assert torch.allclose(run(model), sdpa, atol=1e-5)
        assert [layer for layer, *_ in seen] == [0, 1] and seen[0][1][:2] == (2, 2)
        model.config._attn_implementation = "sdpa"
        run(model)
        assert len(seen) == 2


@pytest.mark.parametrize("make, run", CASES.values(), ids=CASES)
def test_no_mask_is_causal(make, run):
    model = make()
    layer = model.layers[0].self_attn
    hidden = torch.randn(1, 6, 32)
    with torch.no_grad():
        before = layer(hidden)
        hidden[:, -1] += 1
        assert ((layer(hidden) - before)[0, 0].abs() > 1e-6).any()


@pytest.mark.parametrize("make, run", CASES.values(), ids=CASES)
def test_they_load_what_they_saved(make, run, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    again = sw.load(tmp_path)
    assert type(again) is type(model)
    with torch.no_grad():
        assert torch.equal(run(again), run(model))


def test_masks_of_both_kinds_and_rotary_embedding():
    q, k, v = torch.randn(3, 1, 2, 5, 4).unbind()
    kept = torch.rand(5, 5) < 0.5
    kept[:, 0] = True
    module = torch.nn.Module()
    a, weights = eager(module, q, k, v, kept, 0.5)
    b, _ = eager(module, q, k, v, torch.where(kept, 0.0, -torch.inf), 0.5)
    assert torch.allclose(a, b) and (weights.masked_select(~kept) == 0).all()
    x = torch.randn(1, 1, 1, 8).expand(1, 1, 12, 8)
    turned = rotated(x, *turns(torch.arange(12)[None], 8, 100.0))
    logits = (turned @ turned.mT)[0, 0]
    assert torch.allclose(logits.diagonal(5), logits[0, 5], atol=1e-5) and torch.equal(turned[0, 0, 0], x[0, 0, 0])
