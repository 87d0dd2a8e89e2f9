from __future__ import annotations

import copy
import errno
import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import sparseworks as sw
from sparseworks.core.config import to_config
from sparseworks.core.errors import CheckpointError, ModelError, RecipeError, ShapeError
from sparseworks.core.recipe import Recipe
from sparseworks.core.support import Support
from sparseworks.exec import SparseConv1x1, SparseLinear, fuse
from sparseworks.io import folder as folders
from sparseworks.io import read, save


def pack(model: nn.Module, supports, kernel: str = "csr16-fp32") -> nn.Module:
    """The planned model without measuring: every linear layer and 1x1 convolution packed."""
    fast = copy.deepcopy(model)
    for name, support in supports.items():
        if "[" in name:
            continue
        layer = fast.get_submodule(name)
        kind = SparseLinear.from_linear if isinstance(layer, nn.Linear) else SparseConv1x1.from_conv
        if isinstance(layer, nn.Linear) or set(getattr(layer, "kernel_size", ())) == {1}:
            owner, _, leaf = name.rpartition(".")
            setattr(fast.get_submodule(owner), leaf, kind(layer, support, kernel=kernel))
    return fast


@pytest.fixture(params=["toy", "bert", "llama"])
def case(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def skeleton(case, toy_class):
    return toy_class() if isinstance(case.model, toy_class) else None


@pytest.mark.parametrize("layout", ["dense", "bitmask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_round_trip_is_equal_to_the_bit(tmp_path, case, skeleton, layout, dtype):
    case.model.to(dtype)
    save(tmp_path / "out", case.model, case.supports, layout=layout)
    back = sw.load(tmp_path / "out", model=skeleton)
    assert not back.training
    assert torch.equal(case.output(back), case.output())
    assert back.sparsity.supports == case.supports
    state = case.model.state_dict()
    assert all(torch.equal(v, state[k]) and v.dtype == state[k].dtype for k, v in back.state_dict().items())


@pytest.mark.parametrize("kernel", ["tile-fp32", "tile-bf16", "csr16-fp32", "bitmask-bf16", "dense"])
def test_packed_layers_come_back_as_they_were(tmp_path, case, skeleton, kernel):
    fast = fuse(pack(case.model, case.supports, kernel))  # as `load` and `Plan.apply` do
    save(tmp_path / "out", fast, case.supports, layout="packed")
    back = sw.load(tmp_path / "out", model=skeleton)
    assert torch.equal(case.output(back), case.output(fast))
    packed = {n: m for n, m in fast.named_modules() if isinstance(m, SparseLinear)}
    assert packed
    for name, layer in packed.items():
        assert back.get_submodule(name).rungs == layer.rungs
        assert back.get_submodule(name).metadata() == layer.metadata()
    assert back.sparsity.supports == case.supports


def test_every_site_counts_also_embeddings_and_heads(tmp_path, toy_class, impose):
    model = toy_class().eval()
    supports = impose(model, sw.sites(model, include=["*"]))
    save(tmp_path / "out", model, supports)
    back = sw.load(tmp_path / "out", model=toy_class())
    assert torch.equal(back.embed.weight, model.embed.weight)


def test_loaded_memory_is_aligned_and_its_own(tmp_path, bert):
    save(tmp_path / "out", bert.model, bert.supports, layout="dense")
    back = sw.load(tmp_path / "out")
    assert all(p.data_ptr() % 64 == 0 for p in back.parameters())
    with torch.no_grad():
        for p in back.parameters():
            p.zero_()
    assert torch.equal(bert.output(sw.load(tmp_path / "out")), bert.output())


def test_bitmask_holds_kept_values_only(tmp_path, bert):
    save(tmp_path / "out", bert.model, bert.supports)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        for name, support in bert.supports.items():
            assert file.get_slice(f"{name}.weight").get_shape() == [support.count]


def test_supports_take_one_bit_an_entry(tmp_path, bert):
    save(tmp_path / "out", bert.model, bert.supports)
    with safe_open(tmp_path / "out" / "supports.safetensors", "pt") as file:
        for name, support in bert.supports.items():
            assert file.get_slice(name).get_shape() == [-(-support.size // 8)]


def test_tied_weights_are_stored_once_and_tied_again(tmp_path, toy, toy_class):
    save(tmp_path / "out", toy.model, toy.supports)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert "head.weight" not in file.keys()  # noqa: SIM118
    untied = toy_class()
    untied.head.weight = nn.Parameter(torch.zeros(13, 8))
    back = sw.load(tmp_path / "out", model=untied)
    assert back.head.weight is back.embed.weight


def test_kept_zeros_stay_kept(tmp_path, bert):
    name = next(iter(bert.supports))
    layer = bert.model.get_submodule(name)
    with torch.no_grad():
        layer.weight.zero_()
    save(tmp_path / "out", bert.model, bert.supports)
    assert read(tmp_path / "out").supports[name].count == bert.supports[name].count > 0


def test_facts_of_each_site(tmp_path, bert):
    recipe = Recipe.of(sw.method("wanda", density=0.3))
    save(tmp_path / "out", bert.model, bert.supports, recipe=recipe, meta={"note": 1})
    known = read(tmp_path / "out")
    name, support = next(iter(bert.supports.items()))
    record = known.sites[name]
    assert record["pattern"] == "row"
    assert record["score"] == to_config(sw.method("wanda").score)
    assert (record["count"], record["shape"], record["seed"]) == (support.count, list(support.shape), 0)
    assert record["support"] == support.hash()
    assert known.recipe == recipe
    assert (known.meta, known.layout, known.plan) == ({"note": 1}, "bitmask", None)
    assert (tmp_path / "out" / "recipe.yaml").read_text() == recipe.to_yaml()


def test_plan_comes_back_and_is_applied_on_demand(tmp_path, bert):
    plan = sw.plan(bert.model, bert.supports, batch=4, rounds=2, cache=False)
    save(tmp_path / "out", bert.model, bert.supports, plan=plan)
    back = sw.load(tmp_path / "out", planned=True)
    assert back.sparsity.plan == plan
    assert torch.equal(bert.output(back), bert.output(plan.apply(bert.model)))


def test_planned_without_a_plan_is_refused(tmp_path, bert):
    save(tmp_path / "out", bert.model, bert.supports)
    with pytest.raises(ModelError, match="saved without a plan"):
        sw.load(tmp_path / "out", planned=True)


def test_weights_outside_the_support_are_not_lost_silently(tmp_path, bert):
    name = next(iter(bert.supports))
    empty = {**bert.supports, name: Support.empty(bert.supports[name].shape)}
    with pytest.raises(CheckpointError, match=f"{name}.*non-zero weights outside its support"):
        save(tmp_path / "out", bert.model, empty)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s | {"nowhere": Support.full((2, 2))}, ModelError, "'nowhere', but the model has no such site"),
        (lambda s: {k: Support.full((2, 2)) for k in s}, ShapeError, "its support"),
    ],
)
def test_supports_of_another_model_are_refused(tmp_path, bert, change, error, words):
    with pytest.raises(error, match=words):
        save(tmp_path / "out", bert.model, change(bert.supports))
    assert not list(tmp_path.iterdir())


def test_packed_layer_with_another_support_is_refused(tmp_path, bert):
    fast = pack(bert.model, bert.supports)
    name = next(iter(bert.supports))
    with pytest.raises(CheckpointError, match="holds another support"):
        save(tmp_path / "out", fast, bert.supports | {name: ~bert.supports[name]}, layout="packed")


@pytest.mark.parametrize("layout", ["dense", "bitmask"])
def test_packed_layers_need_the_packed_layout(tmp_path, bert, layout):
    with pytest.raises(ModelError, match="layout='packed'"):
        save(tmp_path / "out", pack(bert.model, bert.supports), bert.supports, layout=layout)


def test_unknown_layout_is_refused(tmp_path, bert):
    with pytest.raises(CheckpointError, match="Unknown layout 'zip'; use dense, bitmask, packed"):
        save(tmp_path / "out", bert.model, bert.supports, layout="zip")


def test_weights_that_were_never_loaded_are_refused(tmp_path):
    with pytest.raises(ModelError, match="meta device"):
        save(tmp_path / "out", nn.Linear(2, 2, device="meta"), {})


def test_meta_that_is_not_plain_is_refused(tmp_path, bert):
    with pytest.raises(RecipeError, match="meta cannot be written as JSON"):
        save(tmp_path / "out", bert.model, bert.supports, meta={"model": object()})


def test_a_full_disk_leaves_the_old_folder(tmp_path, bert, monkeypatch):
    save(tmp_path / "out", bert.model, bert.supports, meta={"run": 1})
    with monkeypatch.context() as patch:
        patch.setattr(
            folders.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        )
        with pytest.raises(CheckpointError, match=r"No space left on device\. Nothing was changed"):
            save(tmp_path / "out", bert.model, bert.supports, meta={"run": 2}, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert read(tmp_path / "out").meta == {"run": 1}


def test_a_model_may_be_saved_over_the_folder_it_came_from(tmp_path, bert):
    save(tmp_path / "out", bert.model, bert.supports)
    back = sw.load(tmp_path / "out")
    save(tmp_path / "out", back, back.sparsity.supports, layout="dense", overwrite=True)
    assert torch.equal(bert.output(sw.load(tmp_path / "out")), bert.output())


def test_configuration_and_tokenizer_travel(tmp_path, bert):
    origin = tmp_path / "origin"
    origin.mkdir()
    for name in ("tokenizer.json", "vocab.txt", "model.bin", "training.json"):
        (origin / name).write_text("{}")
    save(tmp_path / "out", bert.model, bert.supports, assets=origin)
    there = {p.name for p in (tmp_path / "out").iterdir()}
    assert there == {
        "config.json",
        "tokenizer.json",
        "vocab.txt",
        "model.safetensors",
        "supports.safetensors",
        "sparsity.json",
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
