from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import ModelError
from sparseworks.io import save


def test_a_plain_module_needs_an_instance(tmp_path, toy):
    save(tmp_path / "out", toy.model, toy.supports)
    with pytest.raises(
        ModelError, match=r"holds a Toy, which is not from transformers: pass an instance, .*model=Toy\(\.\.\.\)"
    ):
        sw.load(tmp_path / "out")


def test_the_instance_is_filled_in_place(tmp_path, toy, toy_class):
    save(tmp_path / "out", toy.model, toy.supports)
    skeleton = toy_class().train()
    assert sw.load(tmp_path / "out", model=skeleton) is skeleton
    assert not skeleton.training


def test_instances_on_the_meta_device_are_filled(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    save(tmp_path / "out", model, {})
    with torch.device("meta"):
        skeleton = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    x = torch.randn(4, 3)
    assert torch.equal(sw.load(tmp_path / "out", model=skeleton)(x), model(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 8)), "it has no"),
        (lambda: nn.ModuleDict({"a": nn.Linear(9, 9)}), "another shape|in the file"),
        (lambda: nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(2, 2)}), r"the file has no 'b\.bias' \(2 such\)"),
    ],
)
@pytest.mark.parametrize("layout", ["dense", "bitmask"])
def test_another_model_is_refused(tmp_path, impose, make, words, layout):
    model = nn.ModuleDict({"a": nn.Linear(8, 8)})
    save(tmp_path / "out", model, impose(model, sw.sites(model)), layout=layout)
    with pytest.raises((ModelError, sw.core.errors.ShapeError), match=words):
        sw.load(tmp_path / "out", model=make())


def test_dtype_of_a_saved_model(tmp_path, bert):
    save(tmp_path / "out", bert.model, bert.supports)
    assert sw.load(tmp_path / "out", dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("option", [{"planned": True}, {"model": nn.Linear(1, 1)}])
def test_options_of_saved_folders_are_refused_elsewhere(tmp_path, bert, option):
    bert.model.save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="are for folders written by sparseworks"):
        sw.load(tmp_path / "m", **option)


def test_frozen_parameters_stay_frozen(tmp_path, toy, toy_class):
    save(tmp_path / "out", toy.model, toy.supports)
    back = sw.load(tmp_path / "out", model=toy_class().requires_grad_(False))
    assert not any(p.requires_grad for p in back.parameters())
    assert all(p.requires_grad for p in sw.load(tmp_path / "out", model=toy_class()).parameters())


def test_generation_settings_come_back(tmp_path, llama):
    origin = tmp_path / "origin"
    llama.model.generation_config.max_new_tokens = 7
    llama.model.save_pretrained(origin)
    save(tmp_path / "out", llama.model, llama.supports, assets=origin)
    assert sw.load(tmp_path / "out").generation_config.max_new_tokens == 7


def test_a_loaded_causal_model_generates(tmp_path, llama):
    save(tmp_path / "out", llama.model, llama.supports)
    back = sw.load(tmp_path / "out")
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(back.generate(llama.ids, **options), llama.model.generate(llama.ids, **options))
