"""Kernels behind masks: never slower than dense, the same result, pruned weights stay pruned, and files bring it all back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.activations import ActivationMethod, execute
from sparseworks.exec.executing import ExecutingLinear
from sparseworks.exec.masked import MaskedLinear
from sparseworks.io.save import save
from sparseworks.testing.decoder import Decoder


@pytest.fixture
def fast(monkeypatch):
    """Layers of 64 inputs are found fast, all others slow."""
    monkeypatch.setattr(execute, "speed", lambda layer, density, support: 0.5 if layer.in_features == 64 else 2.0)


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().eval()


def batches() -> list[dict]:
    g = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 48, (4, 24), generator=g)} for _ in range(2)]


@torch.no_grad()
def test_only_what_is_faster_runs_by_kernels(fast):
    model, data = decoder(), batches()
    done = sw.sparsify_activations(model, "teal_uniform", data, density=0.5, execute=True)
    wide = model.layers[0].mlp.down_proj
    assert isinstance(wide, ExecutingLinear) and type(model.layers[0].mlp.up_proj) is nn.Linear
    assert {r.executed for r in done.rows} == {0.5, 2.0}
    assert all(r.read == 1.0 for r in done.rows if r.executed == 2.0) and 0 < done.sparsity < 0.3
    masked = decoder()
    sw.sparsify_activations(masked, "teal_uniform", data, density=0.5)
    x = torch.randn(1, 1, 64)
    torch.testing.assert_close(wide(x), masked.layers[0].mlp.down_proj(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pruned_models_keep_their_supports(fast):
    model, data = decoder(), batches()
    pruned = sw.prune(model, sw.method("wanda", density=0.4), data, progress=False)
    before = copy.deepcopy(model)
    sw.sparsify_activations(model, "teal_uniform", data, density=0.6, execute=True, supports=pruned.supports)
    layer = model.layers[1].mlp.down_proj
    assert layer.product.packed.format == "inbits"
    weight, support = layer.product.packed.unpack()
    assert support == pruned.supports["layers.1.mlp.down_proj"]
    assert torch.equal(weight, before.layers[1].mlp.down_proj.weight)


@pytest.mark.parametrize("name", [m.name for m in ActivationMethod.all()])
@torch.no_grad()
def test_saved_models_come_back_exactly(name, tmp_path):
    model, data = decoder(), batches()
    method = sw.method(name, allocate="uniform")
    if method.repair is not None:
        method = method.with_(repair={"low_rank_path": {"alpha": 0.5}})
    sw.sparsify_activations(model, method, data)
    save(tmp_path / "m", model, {})
    back = sw.load(tmp_path / "m", model=decoder())
    assert torch.equal(back(**data[0]), model(**data[0]))
    assert not torch.equal(back(**data[0]), decoder()(**data[0]))


@torch.no_grad()
def test_saved_kernels_and_supports_come_back(fast, tmp_path):
    model, data = decoder(), batches()
    pruned = sw.prune(model, sw.method("wanda", density=0.4), data, progress=False)
    sw.sparsify_activations(model, "teal_uniform", data, density=0.6, execute=True, supports=pruned.supports)
    save(tmp_path / "m", model, pruned.supports)
    assert isinstance(model.layers[0].mlp.down_proj, ExecutingLinear)  # saving does not take it away
    back = sw.load(tmp_path / "m", model=decoder())
    layer = back.layers[0].mlp.down_proj
    assert isinstance(layer, ExecutingLinear) and layer.product.packed.format == "inbits"
    assert torch.equal(back(**data[0]), model(**data[0]))
    one = {"input_ids": data[0]["input_ids"][:1, :1]}
    assert torch.equal(back(**one), model(**one))
    assert back.sparsity.supports == pruned.supports


def test_a_real_measurement_decides_without_a_word_from_us():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(64, 64)
    done = sw.sparsify_activations(model, "teal_uniform", [x], density=0.5, execute=True)
    assert done.rows[0].executed > 0
    assert type(model[0]) is (ExecutingLinear if done.rows[0].executed < 1 / 1.03 else nn.Linear)
    assert not isinstance(model[0], MaskedLinear)
