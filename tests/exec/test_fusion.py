"""Whole layers in one call: equal to their modules, used where nothing is lost by it, and left alone everywhere else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

import sparseworks as sw
from sparseworks.core import errors as sw_errors
from sparseworks.core.support import Support
from sparseworks.exec import fuse, unfuse
from sparseworks.exec.fusion import ANATOMIES, FusedForward
from sparseworks.exec.layers import layer_of, pack_for
from sparseworks.exec.native import native
from sparseworks.io import save
from sparseworks.weights import prune

needs_kernel = pytest.mark.skipif(native() is None, reason="the compiled extension is not built")


def bert(act="gelu", kernel="pairs-int16", seed=0, **sizes):
    torch.manual_seed(seed)
    known = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 112, "num_hidden_layers": 2} | sizes
    config = BertConfig(vocab_size=50, max_position_embeddings=256, hidden_act=act, **known)
    model = BertModel(config, add_pooling_layer=False).eval()
    for p in model.parameters():  # biases and norms are initialised to constants that would hide mistakes
        p.data.add_(torch.randn_like(p) * 0.1)
    return pack_pairs(model, kernel)


def pack_pairs(model, kernel="pairs-int16"):
    for name, module in list(model.encoder.named_modules()):
        if isinstance(module, nn.Linear):
            keep = (torch.rand(module.out_features, module.in_features // 2) < 0.6).repeat_interleave(2, dim=1)
            module.weight.data *= keep
            owner, _, leaf = name.rpartition(".")
            packed = pack_for(layer_of(module), Support.from_mask(keep), [(0, kernel)])
            setattr(model.encoder.get_submodule(owner), leaf, packed)
    return model


@pytest.fixture
def calls(monkeypatch):
    """Every call of the extension's whole layer."""
    made, module = [], native()

    class Watched:
        def __getattr__(self, name):
            return getattr(module, name)

        def encoder(self, *args):
            made.append(args)
            return module.encoder(*args)

    monkeypatch.setattr("sparseworks.exec.fusion.native", Watched)
    return made


def inputs(batch, tokens, seed=1):
    return {"input_ids": torch.randint(50, (batch, tokens), generator=torch.Generator().manual_seed(seed))}


def padded(batch, tokens):
    lengths = torch.arange(batch) * 5 % tokens + 1
    return inputs(batch, tokens) | {"attention_mask": (torch.arange(tokens) < lengths[:, None]).long()}


@torch.inference_mode()
def run(model, batch):
    return model(**batch).last_hidden_state


def assert_near(got, expected, bound=2e-3):
    assert torch.isfinite(got).all()
    assert float((got - expected).norm() / expected.norm()) < bound


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 12), (3, 7), (9, 8), (2, 33), (5, 64), (1, 65), (4, 128), (2, 200)], ids=str
)
def test_equals_the_modules(calls, shape, threads):
    modules, fused = bert(), fuse(bert())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch in (inputs(*shape), padded(*shape)):
            assert_near(run(fused, batch), run(modules, batch))
    finally:
        torch.set_num_threads(before)
    assert len(calls) == 4


@needs_kernel
@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh", "relu"])
def test_every_instruction_set_equals_the_modules(calls, every_isa, act):
    """Sequences that share a tile, fill one, and go beyond it, whatever the number of lanes."""
    modules, fused = bert(act), fuse(bert(act))
    for shape in [(1, 1), (9, 5), (3, 17), (2, 33), (3, 64), (2, 130)]:
        assert_near(run(fused, padded(*shape)), run(modules, padded(*shape)))
    assert len(calls) == 12


@needs_kernel
def test_only_fixed_point_parts_them():
    """Both round inputs to the same levels, so both lie equally far from the exact product of the packed weights."""
    modules, batch = bert(), padded(6, 40)
    exact = copy.deepcopy(modules)
    for name, module in list(exact.named_modules()):
        if hasattr(module, "dense_weight"):
            dense = nn.Linear(module.in_features, module.out_features)
            dense.weight.data, dense.bias.data = module.dense_weight(), module.bias.data
            owner, _, leaf = name.rpartition(".")
            setattr(exact.get_submodule(owner), leaf, dense)
    true = run(exact.double(), batch).float()
    seen = batch["attention_mask"].bool()
    apart = [float((run(m, batch) - true)[seen].norm() / true[seen].norm()) for m in (modules, fuse(bert()))]
    assert 0 < apart[1] < 1.5 * apart[0] < 1e-2


@needs_kernel
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_activations(calls, act):
    assert_near(run(fuse(bert(act)), inputs(2, 20)), run(bert(act), inputs(2, 20)))
    assert len(calls) == 2


@needs_kernel
@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 36, "num_attention_heads": 6},
        {"intermediate_size": 600},
        {"hidden_size": 264, "num_attention_heads": 8},
    ],
)
def test_sizes_that_fill_no_vector(calls, sizes):
    assert_near(run(fuse(bert(**sizes)), padded(3, 11)), run(bert(**sizes), padded(3, 11)))
    assert len(calls) == 2


@needs_kernel
def test_a_token_that_is_not_finite_stays_alone_in_its_sequence(calls, every_isa):
    layer = fuse(bert()).encoder.layer[0]
    x = torch.randn(3, 10, 48)
    x[1, 4, 7] = float("nan")
    x[2, 0, 0] = float("inf")
    with torch.inference_mode():
        y = layer(x)
    assert len(calls) == 1 and torch.isfinite(y[0]).all()
    assert torch.isnan(y[1]).all() and torch.isnan(y[2]).all()  # every query sees that key


@needs_kernel
def test_a_sequence_without_visible_keys_gets_no_context(calls, every_isa):
    layer, x = fuse(bert()).encoder.layer[0], torch.randn(2, 9, 48)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[1] = False
    with torch.inference_mode():
        y, free = layer(x, mask), layer(x)
    assert torch.isfinite(y).all() and torch.equal(y[0], free[0]) and not torch.allclose(y[1], free[1])
    assert len(calls) == 2


def dropout_alone(model):
    next(m for m in model.encoder.layer[0].modules() if isinstance(m, nn.Dropout)).train()


def hook(model):
    model.encoder.layer[0].attention.self.register_forward_hook(lambda *_: None)


def patch(model):
    dense = model.encoder.layer[0].output.dense
    dense.forward = lambda x: type(dense).forward(dense, x)


def other_module(model):
    dense = model.encoder.layer[0].intermediate.dense
    model.encoder.layer[0].intermediate.dense = copy.deepcopy(dense)


def causal(model):
    model.encoder.layer[0].attention.self.is_causal = True


def other_attention(model):
    model.encoder.layer[0].attention.self.config._attn_implementation = "mine"


def wrong_bias(model):
    model.encoder.layer[0].output.dense.bias = nn.Parameter(torch.zeros(3))


@needs_kernel
@pytest.mark.parametrize(
    "change", [dropout_alone, hook, patch, other_module, causal, other_attention, wrong_bias, nn.Module.train]
)
def test_a_changed_layer_goes_back_to_its_modules(calls, change):
    model, x = fuse(bert()), torch.randn(2, 9, 48)
    with torch.inference_mode():
        model.encoder.layer[0](x)
        assert len(calls) == 1
        change(model)
        try:
            model.encoder.layer[0](x)
        except (KeyError, sw_errors.SparseworksError):
            assert change in (other_attention, wrong_bias)  # what the modules themselves say
    assert len(calls) == 1


@needs_kernel
def test_calls_that_want_more_than_numbers_go_to_the_modules(calls):
    model, modules, x = fuse(bert()), bert(), torch.randn(2, 9, 48)
    layer, plain = model.encoder.layer[0], modules.encoder.layer[0]
    triangle = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    with torch.inference_mode():
        torch.testing.assert_close(layer(x, triangle), plain(x, triangle), rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        assert run(model, inputs(2, 9)).shape == (2, 9, 48) and len(calls) == 2
        calls.clear()
        model.set_attn_implementation("eager")  # the one that returns them
        attentions = model(**inputs(2, 9), output_attentions=True).attentions
    assert not calls and len(attentions) == 2


@needs_kernel
@pytest.mark.parametrize(
    "learns", ["attention.output.LayerNorm.weight", "output.dense.bias", "attention.self.query.bias"]
)
def test_gradients_flow_through_the_modules(calls, learns):
    layer = fuse(bert()).encoder.layer[0].requires_grad_(False)
    layer.get_parameter(learns).requires_grad_(True)
    layer(torch.randn(2, 9, 48)).square().sum().backward()
    assert float(layer.get_parameter(learns).grad.abs().sum()) > 0
    layer.requires_grad_(False)(x := torch.randn(2, 9, 48)).square()
    assert len(calls) == 1  # with nothing to learn, gradients may be on
    layer(x.requires_grad_()).square().sum().backward()
    assert x.grad is not None and len(calls) == 1


@needs_kernel
def test_masks_of_numbers_and_of_truth(calls):
    """Float masks as eager attention hands them over, and whatever default types and devices are set."""
    layer, plain = fuse(bert()).encoder.layer[0], bert().encoder.layer[0]
    seen = torch.arange(9) < torch.tensor([4, 9])[:, None]
    numbers = torch.zeros(2, 1, 1, 9).masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min)
    x = torch.randn(2, 9, 48)
    with torch.inference_mode():
        for mask in (seen[:, None, None], seen[:, None, None].expand(2, 1, 9, 9).contiguous(), numbers):
            assert_near(layer(x, mask), plain(x, mask))
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            assert_near(layer(x, seen[:, None, None]), plain(x, numbers))
        finally:
            torch.set_default_dtype(before)
        with torch.device("meta"):
            kept = layer(x, seen[:, None, None])
        assert_near(kept, plain(x, numbers))
    assert len(calls) == 5


@needs_kernel
def test_another_machine_runs_the_modules(calls, monkeypatch):
    """A model copied to a machine without the extension still holds the fused forward."""
    layer, plain, x = fuse(bert()).encoder.layer[0], bert().encoder.layer[0], torch.randn(2, 9, 48)
    monkeypatch.setattr("sparseworks.exec.fusion.native", lambda: None)
    with torch.inference_mode():
        assert torch.equal(layer(x), plain(x))
    assert not calls


@needs_kernel
def test_others_replacements_and_namesakes_are_left_alone():
    model = bert()
    own = model.encoder.layer[0].forward = lambda *a, **k: a[0]
    assert len(fused_layers(fuse(model))) == 1 and model.encoder.layer[0].forward is own

    class BertLayer(type(model.encoder.layer[1])):
        pass

    namesake = bert()
    namesake.encoder.layer[0].__class__ = BertLayer
    assert len(fused_layers(fuse(namesake))) == 1


def test_only_layers_that_run_as_pairs_are_fused():
    assert not fused_layers(fuse(bert(kernel="tile-fp32")))
    plain = BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1)
    )
    assert not fused_layers(fuse(plain))
    assert not fused_layers(fuse(bert("silu")))


@needs_kernel
def test_a_fused_model_is_an_ordinary_model(calls, tmp_path):
    model, batch = fuse(bert()), inputs(2, 9)
    expected = run(model, batch)
    calls.clear()
    assert list(model.state_dict()) == list(bert().state_dict())
    twin = copy.deepcopy(model)
    assert [f.layer for f in fused_layers(twin)] == list(twin.encoder.layer)
    torch.testing.assert_close(run(twin, batch), expected, rtol=0, atol=0)
    torch.save(model, tmp_path / "model.pt")
    torch.testing.assert_close(
        run(torch.load(tmp_path / "model.pt", weights_only=False), batch), expected, rtol=0, atol=0
    )
    assert len(calls) == 4
    assert not fused_layers(unfuse(twin))
    assert_near(run(twin, batch), expected)
    assert len(calls) == 4


@needs_kernel
def test_planned_models_are_fused_and_stay_so_on_disk(tmp_path):
    dense = BertModel(
        BertConfig(vocab_size=50, hidden_size=48, num_attention_heads=4, intermediate_size=96, num_hidden_layers=1)
    )
    pruned = prune(dense.eval(), sw.method("magnitude", pattern="block:1x2", density=0.5), progress=False)
    supports = {name: s for name, s in pruned.supports.items() if "layer.0" in name}
    drawn = sw.plan(dense, supports, batch=32, dtypes=(torch.int16,), cache=False, rounds=1)
    forced = type(drawn)(
        drawn.table, drawn.batches, drawn.layers, dict.fromkeys(supports, ((0, "pairs-int16"),)), supports=supports
    )
    planned = forced.apply(dense)
    assert len(fused_layers(planned)) == 1 and not fused_layers(dense)
    save(tmp_path / "m", planned, supports, layout="packed")
    loaded = sw.load(tmp_path / "m")
    assert len(fused_layers(loaded)) == 1
    torch.testing.assert_close(run(loaded, inputs(2, 9)), run(planned, inputs(2, 9)), rtol=0, atol=0)


@needs_kernel
def test_compile_traces_the_modules(calls):
    layer, x = fuse(bert(num_hidden_layers=1)).encoder.layer[0], torch.randn(2, 9, 48)
    torch._dynamo.reset()
    with torch.inference_mode():
        got = torch.compile(layer, backend="eager")(x)
    assert not calls
    assert_near(got, layer(x).detach())


def fused_layers(model):
    return [f for m in model.modules() if isinstance(f := m.__dict__.get("forward"), FusedForward)]


@needs_kernel
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "camembert", "electra"])
def test_relatives_of_bert(calls, kind):
    """Every layer class that is listed: the names fit and the results are the modules'."""
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 112, "num_hidden_layers": 1}
    config = AutoConfig.for_model(kind, vocab_size=50, max_position_embeddings=64, **sizes)
    torch.manual_seed(0)
    modules = pack_pairs(AutoModel.from_config(config).eval())
    fused = fuse(copy.deepcopy(modules))
    assert {type(f.layer).__name__ for f in fused_layers(fused)} <= set(ANATOMIES)
    assert_near(run(fused, inputs(2, 9)), run(modules, inputs(2, 9)))
    assert len(calls) == 1
