"""Decoder layers at one token: equal to their modules with any cache length and batch, and left to them everywhere else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig, StaticCache

from sparseworks.core import errors as sw_errors
from sparseworks.core.support import Support
from sparseworks.exec import fuse, unfuse
from sparseworks.exec.decoder import DECODERS, SparseTransformerLayer, sparse_layer
from sparseworks.exec.growing import GrowingLayer, growing_cache
from sparseworks.exec.layers import layer_of, pack_for
from sparseworks.exec.native import native
from sparseworks.exec.step import Step

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
needs_kernel = pytest.mark.skipif(native() is None, reason="without the extension layers run their modules")


@pytest.fixture
def steps(monkeypatch):
    """Counts the tokens that went the short way."""
    taken, real = [], Step.run
    monkeypatch.setattr(Step, "run", lambda *a: taken.append(1) or real(*a))
    return taken


def decoder(kind="llama", dense=(), **options):
    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 2, "head_dim": 12}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SIZES | tokens | options))).eval()
    for name, p in model.named_parameters():
        p.data.add_(torch.randn_like(p) * (0.3 if "norm" in name or "bias" in name else 0.0))
    for name, module in list(model.model.named_modules()):
        owner, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Linear) and leaf not in dense:
            support = Support.from_mask(torch.rand_like(module.weight) < 0.5)
            setattr(model.model.get_submodule(owner), leaf, pack_for(layer_of(module), support, [(0, "csr16-fp32")]))
    return model


def generated(model, batch=2, prompt=5, count=4, cache=None, **options):
    """Logits of a prompt and of `count` single tokens after it, which do not depend on what was generated."""
    tokens = (torch.arange(batch * (prompt + count)).reshape(batch, -1) * 7) % 50
    cache, found = DynamicCache(config=model.config) if cache is None else cache, []
    with torch.inference_mode():
        for at in [slice(0, prompt), *(slice(i, i + 1) for i in range(prompt, prompt + count))]:
            masks = {k: v[:, : at.stop] for k, v in options.items()}
            found.append(model(input_ids=tokens[:, at], cache=cache, use_cache=True, **masks).logits)
    return torch.cat(found, 1)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("prompt", [1, 5, 67])
def test_equals_the_modules_while_the_cache_grows(batch, prompt, steps, every_isa):
    model = decoder()
    expected = generated(model, batch, prompt)
    assert not steps
    close(generated(fuse(model), batch, prompt), expected)
    assert len(steps) == (8 if every_isa != "none" else 0)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_named_family(kind, attention, steps):
    model = decoder(kind, attn_implementation=attention, attention_bias=True, sliding_window=None)
    expected = generated(model)
    close(generated(fuse(model)), expected)
    assert type(model.model.layers[0]).__mro__[2].__name__ in DECODERS
    assert isinstance(model.model.layers[0], SparseTransformerLayer) and len(steps) == (8 if native() else 0)


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_other_activations_and_head_groups(act, steps):
    model = decoder(hidden_act=act, num_key_value_heads=4, head_dim=6)
    expected = generated(model)
    close(generated(fuse(model)), expected)
    assert not native() or len(steps) == 8


def test_dense_matrices_among_the_sparse(steps):
    model = decoder(dense=("k_proj", "down_proj"))
    expected = generated(model)
    close(generated(fuse(model)), expected)
    assert not native() or len(steps) == 8


@needs_kernel
def test_padded_prompts_and_windows_obey_their_masks(steps):
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    model = decoder()
    expected = generated(model, attention_mask=mask)
    close(generated(fuse(model), attention_mask=mask), expected)
    assert len(steps) == 8
    short = decoder("mistral", sliding_window=3)
    expected = generated(short)
    close(generated(fuse(short)), expected)
    assert len(steps) == 8  # a cache with a window stays with its modules


@needs_kernel
def test_other_caches_stay_with_the_modules(steps):
    model = decoder()
    static = StaticCache(config=model.config, max_cache_len=16)
    expected = generated(model)
    close(generated(fuse(model), cache=static), expected)
    assert not steps


@needs_kernel
def test_a_cache_in_bfloat16_is_close(steps):
    model = decoder()
    expected = generated(model)
    got = generated(fuse(model), cache=growing_cache(model.config, dtype=torch.bfloat16))
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.05)
    assert not torch.equal(got, expected) and len(steps) == 8
    with torch.inference_mode():
        assert growing_cache(model.config).layers[0].get_seq_length() == 0


@needs_kernel
def test_cache_operations_in_between(steps):
    """Cropping, reordering and choosing sequences, prompts of several tokens: as with the cache of transformers."""

    def run(model):
        cache, found = DynamicCache(config=model.config), []

        def call(ids):
            found.append(model(input_ids=ids, cache=cache).logits)

        with torch.inference_mode():
            call(torch.arange(10).view(2, 5))
            call(torch.tensor([[3], [4]]))
            cache.crop(-2)
            call(torch.tensor([[5], [6]]))
            cache.reorder_cache(torch.tensor([1, 0]))
            call(torch.tensor([[7], [8]]))
            call(torch.tensor([[7, 9], [8, 2]]))
            cache.batch_repeat_interleave(2)
            call(torch.arange(4).view(4, 1))
            cache.batch_select_indices(torch.tensor([0, 3]))
            call(torch.arange(2).view(2, 1))
            kept = cache.layers[0].keys
            cache.reset()
            call(torch.arange(6).view(2, 3))
        return [*found, kept], cache

    model = decoder()
    expected, _ = run(model)
    got, cache = run(fuse(model))
    for a, b in zip(got, expected, strict=True):
        close(a, b)
    assert len(steps) == 10 and all(type(layer) is GrowingLayer for layer in cache.layers)


@needs_kernel
def test_generate_and_hidden_states():
    model = decoder()
    given = {"input_ids": torch.arange(6).view(2, 3), "max_new_tokens": 5, "do_sample": False}
    options = {"output_hidden_states": True, "return_dict_in_generate": True}
    expected = model.generate(**given, **options)
    got = fuse(model).generate(**given, **options)
    assert torch.equal(
        got.sequences, expected.sequences
    )  # hidden states may be taken by hooks, which send layers to their modules
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert len(a) == 3
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        model.generate(**given, num_beams=3), unfuse(copy.deepcopy(model)).generate(**given, num_beams=3)
    )


@needs_kernel
@pytest.mark.parametrize("part", ["self_attn", "mlp", "mlp.act_fn", "self_attn.k_proj", "input_layernorm"])
def test_hooks_inside_send_the_layer_to_its_modules(part, steps):
    model, seen = fuse(decoder()), []
    expected = generated(model)
    steps.clear()
    handle = model.model.layers[1].get_submodule(part).register_forward_hook(lambda *_: seen.append(1))
    close(generated(model), expected)
    assert len(steps) == 4 and len(seen) == 5
    handle.remove()
    generated(model)
    assert len(steps) == 12


@needs_kernel
def test_gradients_and_training_go_through_the_modules(steps):
    model = fuse(decoder())
    cache = DynamicCache(config=model.config)
    for tokens in ([[1, 2]], [[3]]):
        logits = model(input_ids=torch.tensor(tokens), cache=cache).logits
    logits.sum().backward()
    assert model.model.layers[0].input_layernorm.weight.grad is not None and not steps


@needs_kernel
def test_weights_are_read_at_each_call(steps):
    model = fuse(decoder())
    generated(model)
    layer = model.model.layers[0]
    layer.input_layernorm.weight.data.mul_(2)
    for name, buffer in layer.mlp.up_proj.named_buffers():
        if name.endswith("values"):
            buffer.mul_(0.5)
    expected = generated(unfuse(copy.deepcopy(model)))
    steps.clear()
    close(generated(model), expected)
    assert len(steps) == 8


@needs_kernel
def test_copies_and_pickles_run_their_own_modules(steps):
    model = fuse(decoder())
    expected = generated(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(generated(twin), expected)
        twin.model.layers[1].mlp.down_proj.register_forward_hook(lambda *_: _[2] * 0)
        assert not torch.equal(generated(twin), expected)
    close(generated(model), expected)


def test_names_and_state_stay_and_unfuse_restores():
    model = decoder()
    names, keys = [n for n, _ in model.named_modules()], list(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    fuse(fuse(model))
    assert [n for n, _ in model.named_modules()] == names and list(model.state_dict()) == keys
    assert [type(m) for m in unfuse(model).modules()] == kinds


def test_what_is_no_such_layer_is_refused():
    with pytest.raises(sw_errors.ModelError, match="LlamaDecoderLayer"):
        sparse_layer(nn.Linear(2, 2))
    layer = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, hidden_act="tanh")).model.layers[0]
    with pytest.raises(sw_errors.ModelError, match="activation"):
        sparse_layer(layer)
    layer.forward = lambda x: x
    with pytest.raises(sw_errors.ModelError, match="replaced its forward"):
        sparse_layer(layer)
