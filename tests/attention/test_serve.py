"""Windows as configuration of serving engines; a model of transformers built with the overrides attends as the method does."""

import json

import pytest
import torch

import sparseworks as sw
from sparseworks.attention.masks import Causal, Sink, Window
from sparseworks.attention.serve import serving_overrides, vertical_slash_overrides
from sparseworks.core.errors import RecipeError
from sparseworks.core.recipe import Recipe, Rule


@pytest.fixture(scope="module")
def model():
    return sw.load("sparseworks/tiny-lm").eval()


def windowed(n: int, **changes):
    return sw.method("sink_window", always=Window(n), **changes)


def test_windows_by_layer(model):
    recipe = Recipe((Rule(("*layers.1.*", "*layers.2.*"), windowed(64)),))
    found = serving_overrides(model, recipe)
    assert found["sliding_window"] == 64
    assert found["layer_types"] == ["full_attention"] + ["sliding_attention"] * 2 + ["full_attention"] * 3
    assert json.loads(json.dumps(found)) == found
    assert serving_overrides(model, sw.method("sink_window", always=Window(32) & Causal()))["sliding_window"] == 32
    assert serving_overrides(model, Recipe((Rule(("nothing",), windowed(8)),))) == {
        "layer_types": ["full_attention"] * 6
    }


@torch.no_grad()
def test_the_window_means_the_same_to_transformers(model):
    """Mistral is Llama with a window: with our override it computes what the method computes, token by token."""
    from transformers import MistralConfig, MistralForCausalLM

    window = serving_overrides(model, windowed(17))["sliding_window"]
    shared = {
        k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "architectures", "sliding_window")
    }
    other = MistralForCausalLM(MistralConfig(**shared, sliding_window=window)).to(next(model.parameters()).dtype).eval()
    other.load_state_dict(model.state_dict())
    ids = torch.randint(5, 4000, (1, 60), generator=torch.Generator().manual_seed(0))
    expected = other(ids).logits
    with sw.attention(model, windowed(17, pattern=sw.attention.pages(1))):
        found = model(ids).logits
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)
    assert (model(ids).logits - expected).abs().max() > 0.5


def test_what_engines_cannot_say_is_refused(model):
    two = Recipe((Rule(("*layers.0.*",), windowed(8)), Rule(("*layers.1.*",), windowed(16))))
    for method, why in (
        ("pooled_blocks", "looks at its input"),
        (sw.method("sink_window", always=Sink(4) | Window(64)), "beside"),
        (two, "one window"),
    ):
        with pytest.raises(RecipeError, match=why):
            serving_overrides(model, method)


def test_columns_and_diagonals_of_heads():
    config = vertical_slash_overrides([[(100, 200), (30, 40)], [(1, 1), (5, 6)]], threshold=1000)
    inner = config["dual_chunk_attention_config"]
    assert inner["sparse_attention_config"][0]["1"] == ["vertical_and_slash", 30, 40, 1.0]
    assert inner["sparse_attention_threshold"] == 1000 and len(inner["sparse_attention_config"]) == 2
    for wrong in ([], [[]], [[(1, 1)], [(1, 1), (2, 2)]], [[(0, 1)]]):
        with pytest.raises(RecipeError):
            vertical_slash_overrides(wrong)
