from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparseworks.core.errors import ModelError
from sparseworks.io.assets import asset_files, config_text


def test_weights_and_unknown_files_stay_behind(tmp_path):
    travelling = [
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "spiece.model",
        "chat_template.jinja",
        "generation_config.json",
    ]
    staying = [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "README.md",
        "sparsity.json",
    ]
    for name in travelling + staying:
        (tmp_path / name).write_text("{}")
    assert set(asset_files(tmp_path)) == set(travelling)
    assert asset_files(None) == {}


def test_modules_outside_the_folder_are_not_followed(tmp_path):
    folder = tmp_path / "m"
    for place in (tmp_path / "secret", folder / "1_Pooling"):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
    paths = ["", "1_Pooling", "2_Normalize", "../secret", str(tmp_path / "secret")]
    (folder / "modules.json").write_text(json.dumps([{"path": p} for p in paths]))
    assert set(asset_files(folder)) == {"modules.json", "1_Pooling/config.json"}


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        asset_files(tmp_path / "none")


def test_configuration_states_the_class_and_type_of_now(bert):
    bert.model.to(torch.bfloat16)
    config = json.loads(config_text(bert.model))
    assert (config["architectures"], config["dtype"]) == (["BertModel"], "bfloat16")
    assert bert.model.config.architectures is None
    assert config_text(nn.Linear(1, 1)) is None
