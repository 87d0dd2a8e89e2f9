"""A method in force on a transformers model: padding, generation, densities, and what is refused."""

from inspect import signature

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import ModelError, RecipeError
from sparseworks.core.recipe import Recipe, Rule


@pytest.fixture(scope="module")
def model():
    return sw.load("sparseworks/tiny-lm").eval()


@pytest.fixture(scope="module")
def padded():
    ids = torch.randint(5, 4000, (2, 200), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def test_a_full_budget_gives_the_models_own_logits_with_padding(model, padded):
    before = model.config._attn_implementation
    expected = model(**padded).logits
    with sw.attention(model, sw.method("pooled_blocks", density=1.0)) as run:
        found = model(**padded).logits
    real = padded["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=0)
    assert run.density() == 1 and model.config._attn_implementation == before
    torch.testing.assert_close(model(**padded).logits, expected)


@torch.no_grad()
def test_a_sequence_with_padding_attends_as_it_does_alone(model, padded):
    method = sw.method("pooled_blocks", density=0.3)
    with sw.attention(model, method) as run:
        both = model(**padded).logits
        assert 0.2 < run.density() < 0.6
        alone = model(padded["input_ids"][1:]).logits
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_decoding_reads_what_the_budget_says(model, padded):
    plain = model.generate(**padded, max_new_tokens=6, do_sample=False)
    with sw.attention(model, sw.method("quest", budget={"count": {"value": 4096}})) as run:
        assert torch.equal(model.generate(**padded, max_new_tokens=6, do_sample=False), plain)
    assert run.density("decode") == 1
    with sw.attention(model, sw.method("quest", budget={"count": {"value": 32}})) as run:
        model.generate(**padded, max_new_tokens=6, do_sample=False)
    assert 32 / 206 <= run.density("decode") <= 32 / 160


@torch.no_grad()
def test_a_recipe_gives_layers_methods_of_their_own(model, padded):
    recipe = Recipe((Rule(("*layers.0.*", "*layers.1.*"), sw.method("pooled_blocks", density=0.2)),))
    with sw.attention(model, recipe) as run:
        model(**padded)
    sparse = {layer for layer, seen in run.layers.items() if seen.density("prefill") < 1}
    assert sparse == {0, 1} and set(run.layers) == set(range(6))


def test_what_is_refused(model):
    with pytest.raises(RecipeError, match="wanda"), sw.attention(model, "wanda"):
        pass
    with pytest.raises(ModelError, match="attention layers"), sw.attention(torch.nn.Linear(2, 2), "quest"):
        pass
    with pytest.raises(RecipeError, match=r"sw\.attention"):
        sw.prune(torch.nn.Linear(4, 4), sw.method("quest"))


@torch.no_grad()
def test_layers_with_a_window_of_their_own_keep_it_and_the_others_take_the_method():
    from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 16}  # fmt: skip
    ids = torch.randint(0, 50, (2, 40))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    windowed = MistralForCausalLM(MistralConfig(**sizes, sliding_window=9)).eval()
    expected = windowed(ids, attention_mask=mask).logits
    with sw.attention(windowed, sw.method("pooled_blocks", density=0.1)):
        found = windowed(ids, attention_mask=mask).logits
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)
        out = windowed.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(out, windowed.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False))
    with sw.attention(windowed, sw.method("snapkv", density=0.5)) as run, pytest.raises(ModelError, match="window"):
        name = "cache" if "cache" in signature(windowed.forward).parameters else "past_key_values"
        windowed(ids, **{name: run.cache()})
    soft = Gemma2ForCausalLM(Gemma2Config(**sizes, sliding_window=9)).eval()
    with sw.attention(soft, "pooled_blocks"), pytest.raises(ModelError, match="softcap"):
        soft(ids)


@torch.no_grad()
def test_packed_sequences_are_refused(model):
    ids = torch.randint(5, 4000, (1, 20))
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None]
    with sw.attention(model, "pooled_blocks"), pytest.raises(ModelError, match="packed"):
        model(ids, position_ids=positions, use_cache=False)


def test_a_transformers_that_is_too_old_is_named(model, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "__version__", "5.15.1")
    with pytest.raises(ModelError, match=r"5\.16 or later, this is 5\.15\.1"), sw.attention(model, "quest"):
        pass
