"""Norms and gated activations in one pass: equal to torch, used where nothing is lost by it, left alone everywhere else."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GemmaConfig, LlamaConfig, MistralConfig

from sparseworks.core import errors as sw_errors
from sparseworks.core.support import Support
from sparseworks.exec import fuse, unfuse
from sparseworks.exec.between import GATED, NORMS, GatedForward, NormForward, add_rms_norm, gated, rms_norm
from sparseworks.exec.layers import layer_of, pack_for
from sparseworks.exec.native import features, native

ACTIVATIONS = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
}
SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}


@pytest.fixture
def calls(monkeypatch):
    """Names of the extension's functions that were run."""
    made, module = [], native()

    class Watched:
        def __getattr__(self, name):
            made.append(name)
            return getattr(module, name)

    monkeypatch.setattr("sparseworks.exec.between.native", lambda: Watched() if module is not None else None)
    return made


def norm_of(x, weight, eps):
    wide = x.double()
    return weight.double() * wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def decoder(config=LlamaConfig, seed=0, **options):
    """A small decoder in which every linear layer but the last is packed; norms have weights that are not all one."""
    torch.manual_seed(seed)
    return packed(AutoModelForCausalLM.from_config(config(**SIZES, num_key_value_heads=2, **options)))


def packed(model):
    model.eval()
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data.add_(torch.randn_like(p) * 0.3)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            keep = torch.rand_like(module.weight) < 0.5
            owner, _, leaf = name.rpartition(".")
            sparse = pack_for(layer_of(module), Support.from_mask(keep), [(0, "csr16-fp32")])
            setattr(model.model.get_submodule(owner), leaf, sparse)
    return model


def replaced(model, kind):
    return [m for m in model.modules() if isinstance(m.__dict__.get("forward"), kind)]


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(14).reshape(2, 7)).logits


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 5), width=st.integers(1, 70), scale=st.sampled_from([1e-4, 1.0, 1e4]), seed=st.integers(0, 99)
)
def test_norm_equals_its_formula(rows, width, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, width, generator=generator) * scale, torch.randn(width, generator=generator)
    with torch.inference_mode():
        y = rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(y, norm_of(x, weight, 1e-5).float(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("width", [1, 3, 16, 31, 64, 131])
def test_norm_on_every_instruction_set(every_isa, width, calls):
    x, weight = torch.randn(2, 3, width), torch.randn(width)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), norm_of(x, weight, 1e-6).float(), rtol=2e-6, atol=2e-6)
    assert calls == (["rms_norm"] if every_isa != "none" else [])


@pytest.mark.parametrize("shape", [(1,), (2, 3, 31), (4, 64), (0, 5)])
def test_sum_and_norm_on_every_instruction_set(every_isa, shape, calls):
    x, added, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[-1])
    total, y = add_rms_norm(x, added, weight, 1e-5)
    assert torch.equal(total, x + added)
    torch.testing.assert_close(y, norm_of(x + added, weight, 1e-5).float(), rtol=2e-6, atol=2e-6)
    assert calls == (["rms_norm"] if every_isa != "none" and x.numel() else [])
    with pytest.raises(sw_errors.ShapeError, match="what is added"):
        add_rms_norm(x, torch.randn(7, 7), weight)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(0,), (1,), (5, 13), (2, 3, 64), (70000,)])
def test_gated_on_every_instruction_set(every_isa, name, shape, calls):
    gate, up = torch.randn(shape) * 4, torch.randn(shape)
    torch.testing.assert_close(gated(gate, up, name), ACTIVATIONS[name](gate) * up, rtol=1e-5, atol=1e-5)
    assert calls == (["gated"] if every_isa != "none" else [])


def test_views_are_read_as_they_look():
    gate, up = torch.randn(6, 10).T, torch.randn(10, 12)[:, ::2]
    torch.testing.assert_close(gated(gate, up), nn.functional.silu(gate) * up, rtol=1e-5, atol=1e-6)
    x, weight = torch.randn(10, 7).T, torch.randn(20)[::2]
    torch.testing.assert_close(rms_norm(x, weight), norm_of(x, weight, 1e-6).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_go_to_torch(dtype, calls):
    gate, up, weight = torch.randn(3, 8, dtype=dtype), torch.randn(3, 8, dtype=dtype), torch.randn(8, dtype=dtype)
    assert gated(gate, up).dtype is dtype and torch.equal(gated(gate, up), nn.functional.silu(gate) * up)
    y = rms_norm(gate, weight)
    torch.testing.assert_close(y.double(), norm_of(gate, weight, 1e-6), rtol=1e-2, atol=1e-2)
    assert y.dtype is dtype and not calls


def test_gradients_go_through_torch(calls):
    gate, up = (torch.randn(2, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gated, (gate, up)) and torch.autograd.gradcheck(rms_norm, (gate, weight))
    single = torch.randn(2, 5, requires_grad=True)
    gated(torch.randn(2, 5), single).sum().backward()
    assert single.grad is not None and not calls


def test_what_does_not_fit_is_refused():
    with pytest.raises(sw_errors.ShapeError, match="norm of"):
        rms_norm(torch.randn(2, 5), torch.randn(4))
    with pytest.raises(sw_errors.ShapeError, match="gate of shape"):
        gated(torch.randn(2, 5), torch.randn(5))
    with pytest.raises(sw_errors.DtypeError, match="make them equal"):
        gated(torch.randn(2), torch.randn(2).double())
    with pytest.raises(sw_errors.UnknownNameError, match="silu"):
        gated(torch.randn(2), torch.randn(2), "silv")


@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig])
def test_fused_decoder_equals_its_modules(config, calls):
    model = decoder(config)
    expected = logits(model)
    assert not calls
    fuse(model)
    assert len(replaced(model, GatedForward)) == 2 and len(replaced(model, NormForward)) == 5
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    if features()["isa"] != "none":
        assert calls.count("rms_norm") == 5 and calls.count("gated") == 2


def test_every_named_family_computes_the_same(calls):
    """Each class in the lists has the formula that its name stands for here."""
    found = set()
    for kind in ("llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3", "granite", "mixtral", "phi3", "gemma"):
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        own = {"mixtral": {"num_local_experts": 2}}.get(kind, {})
        config = AutoConfig.for_model(kind, **SIZES, **tokens, **own, num_key_value_heads=2, head_dim=12)
        model = packed(AutoModelForCausalLM.from_config(config))
        expected = logits(model)
        calls.clear()
        torch.testing.assert_close(logits(fuse(model)), expected, rtol=1e-4, atol=1e-5)
        found |= {type(m).__name__ for m in replaced(model, NormForward | GatedForward)}
        assert calls or features()["isa"] == "none", kind
    assert found == set(GATED) | set(NORMS)


def test_the_weight_of_the_norm_is_read_at_each_call():
    model = fuse(decoder())
    before = logits(model)
    model.model.norm.weight.data.mul_(2)
    torch.testing.assert_close(logits(model), 2 * before, rtol=1e-4, atol=1e-5)


def test_copies_run_their_own_modules():
    model = fuse(decoder())
    twin = copy.deepcopy(model)
    twin.model.norm.weight.data.zero_()
    assert not logits(twin).any() and logits(model).any()


def test_unfuse_restores_the_modules():
    model = unfuse(fuse(decoder()))
    assert not replaced(model, NormForward | GatedForward)


def test_dense_models_gemma_and_patched_modules_are_left_alone():
    dense = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, num_key_value_heads=2))
    assert not replaced(fuse(dense), NormForward | GatedForward)
    gemma = fuse(decoder(GemmaConfig, head_dim=12))
    assert not replaced(gemma, NormForward) and len(replaced(gemma, GatedForward)) == 2
    patched = decoder()
    patched.model.norm.forward = lambda x: x
    assert len(replaced(fuse(patched), NormForward)) == 4


def test_gemma_computes_the_same():
    model = decoder(GemmaConfig, head_dim=12)
    expected = logits(model)
    torch.testing.assert_close(logits(fuse(model)), expected, rtol=1e-4, atol=1e-5)


def test_a_hook_on_the_activation_is_run():
    model, seen = fuse(decoder()), []
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *_: seen.append(1))
    expected = logits(unfuse(copy.deepcopy(model)))
    seen.clear()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert seen == [1]


def test_an_unknown_activation_stays_with_its_module():
    model = decoder(hidden_act="tanh")
    expected = logits(model)
    torch.testing.assert_close(logits(fuse(model)), expected, rtol=1e-4, atol=1e-5)


def test_norms_learn_in_a_fused_model():
    model = fuse(decoder())
    model(input_ids=torch.arange(6)[None]).logits.sum().backward()
    assert all(m.weight.grad is not None for m in replaced(model, NormForward))
