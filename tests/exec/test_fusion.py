"""Whole layers in one call: equal to their modules, used where nothing is lost by it, and left alone everywhere else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import sparseworks as sw
from sparseworks.core.support import Support
from sparseworks.exec import fuse, unfuse
from sparseworks.exec.fusion import FusedForward
from sparseworks.exec.layers import layer_of, pack_for
from sparseworks.exec.native import features, native
from sparseworks.exec.race import Entry, Race
from sparseworks.io import save
from sparseworks.weights import prune

needs_kernel = pytest.mark.skipif(not features().get("encoder"), reason="this processor has no kernel for whole layers")


def bert(act="gelu", kernel="pairs-int16", seed=0, **sizes):
    torch.manual_seed(seed)
    known = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 112, "num_hidden_layers": 2} | sizes
    config = BertConfig(vocab_size=50, max_position_embeddings=256, hidden_act=act, **known)
    model = BertModel(config, add_pooling_layer=False).eval()
    for p in model.parameters():  # biases and norms are initialised to constants that would hide mistakes
        p.data.add_(torch.randn_like(p) * 0.1)
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
def test_a_token_that_is_not_finite_stays_alone_in_its_sequence(calls):
    layer = fuse(bert()).encoder.layer[0]
    x = torch.randn(3, 10, 48)
    x[1, 4, 7] = float("nan")
    x[2, 0, 0] = float("inf")
    with torch.inference_mode():
        y = layer(x)
    assert len(calls) == 1 and torch.isfinite(y[0]).all()
    assert torch.isnan(y[1]).all() and torch.isnan(y[2]).all()  # every query sees that key


@needs_kernel
def test_a_sequence_without_visible_keys_gets_no_context(calls):
    layer, x = fuse(bert()).encoder.layer[0], torch.randn(2, 9, 48)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[1] = False
    with torch.inference_mode():
        y, free = layer(x, mask), layer(x)
    assert torch.isfinite(y).all() and torch.equal(y[0], free[0]) and not torch.allclose(y[1], free[1])
    assert len(calls) == 2


@needs_kernel
def test_goes_back_to_the_modules(calls, monkeypatch):
    """Where a call wants more than numbers, or the modules are no longer those that were fused."""
    model, batch = fuse(bert()), inputs(2, 9)
    layer, x = model.encoder.layer[0], torch.randn(2, 9, 48)
    triangle = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    layer(x, triangle)
    layer(x.requires_grad_())[0].sum().backward()
    assert x.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
    hook = layer.attention.self.register_forward_hook(lambda *_: None)
    run(unused := copy.deepcopy(model), batch)
    assert len(calls) == 1 and unused.encoder.layer[0].attention.self._forward_hooks  # the other layer
    hook.remove()
    calls.clear()
    layer.intermediate.dense = nn.Linear(48, 112)
    run(model, batch)
    assert len(calls) == 1  # the other layer
    attentions = model(**batch, output_attentions=True)
    assert len(attentions.last_hidden_state) == 2
    model.train()
    calls.clear()
    run(model, batch)
    monkeypatch.setattr("sparseworks.exec.fusion.native", lambda: None)
    run(model.eval(), batch)
    assert not calls


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
@pytest.mark.parametrize("slow", [None, "encoder.layer.0.output.dense"])
def test_the_planner_prefers_the_whole_layer(monkeypatch, slow):
    """`tile` wins each product, but `pairs` wins against dense for all six of a layer: they run in one call."""
    config = BertConfig(vocab_size=50, hidden_size=48, num_attention_heads=4, intermediate_size=96, num_hidden_layers=1)
    dense = BertModel(config, add_pooling_layer=False).eval()
    names = [n for n, m in dense.encoder.named_modules(prefix="encoder") if isinstance(m, nn.Linear)]
    keep = {n: dense.get_submodule(n).weight.reshape(-1, dense.get_submodule(n).in_features // 2, 2) for n in names}
    supports = {n: Support.from_mask((w.abs().sum(-1) > 0.02).repeat_interleave(2, dim=1)) for n, w in keep.items()}

    def timed(layer, support, kernels, rows, **_):
        own = {"tile-fp32": 4.0, "pairs-int16": 2.0}
        if slow and layer.module is dense.get_submodule(slow):
            own["pairs-int16"] = 0.9
        return Race(100.0, {k: Entry(100 / r, r, r, r, True) for k, r in own.items()})

    monkeypatch.setattr("sparseworks.exec.draw.race", timed)
    drawn = sw.plan(dense, supports, batch=[32, 4], dtypes=(torch.int16,), cache=False)
    chosen = {row.kernel for row in drawn.table}
    assert chosen == ({"tile-fp32"} if slow else {"pairs-int16"})
    assert all(("one call" in row.reason) == (not slow) for row in drawn.table)
    assert len(fused_layers(drawn.apply(dense))) == (not slow)
