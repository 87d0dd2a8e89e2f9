from __future__ import annotations

import copy

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.stream.kept import read_supports
from sparseworks.weights.folder import prune_folder

transformers = pytest.importorskip("transformers")
_LM = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture
def dense(tmp_path):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LM)).eval()
    model.save_pretrained(tmp_path / "dense", max_shard_size="40KB")
    return model


@pytest.fixture
def batches():
    g = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 64, (2, 9), generator=g)} for _ in range(3)]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "magnitude_global"])
def test_equals_pruning_in_memory(dense, batches, tmp_path, method):
    done = prune_folder(tmp_path / "dense", tmp_path / "out", method, batches, progress=False)
    whole = copy.deepcopy(dense)
    expected = sw.prune(whole, method, batches, progress=False)
    assert done.supports == expected.supports == read_supports(tmp_path / "out" / "supports")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(v, again[k]) for k, v in whole.state_dict().items())
    assert done.memory.weights < expected.memory.weights


def test_predicted_weights_are_the_rest_and_one_block(dense, batches, tmp_path):
    done = prune_folder(tmp_path / "dense", tmp_path / "out", "wanda", batches, progress=False)
    layer = sum(p.numel() * 4 for p in dense.model.layers[0].parameters())
    whole = sum(t.numel() * 4 for t in [*dense.parameters(), *dense.buffers()])
    assert done.memory.weights == whole - 2 * layer - dense.model.embed_tokens.weight.numel() * 4


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_run_that_was_cut_off_goes_on(dense, batches, tmp_path, monkeypatch, at):
    from sparseworks.stream.disk import OnDisk

    expected = prune_folder(tmp_path / "dense", tmp_path / "whole", "wanda", batches, progress=False)
    leave = OnDisk.leave

    def cut(self, block, *, changed=False):
        if changed and block.index == at:
            raise KeyboardInterrupt
        leave(self, block, changed=changed)

    monkeypatch.setattr(OnDisk, "leave", cut)
    with pytest.raises(KeyboardInterrupt):
        prune_folder(tmp_path / "dense", tmp_path / "out", "wanda", batches, workdir=tmp_path / "work", progress=False)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(OnDisk, "leave", leave)
    done = prune_folder(
        tmp_path / "dense", tmp_path / "out", "wanda", batches, workdir=tmp_path / "work", progress=False
    )
    assert done.supports == expected.supports
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def test_what_was_refused_leaves_nothing_behind(dense, batches, tmp_path):
    with pytest.raises(ModelError, match="factorise"):
        prune_folder(tmp_path / "dense", tmp_path / "out", "monarch", batches, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense"]


def test_it_is_loaded_with_its_supports_and_recipe(dense, batches, tmp_path):
    recipe = sw.Recipe.of(sw.method("wanda", density=0.25), skip=["*down_proj"])
    done = prune_folder(tmp_path / "dense", tmp_path / "out", recipe, batches, progress=False)
    model = sw.load(tmp_path / "out")
    assert model.sparsity.supports == done.supports and len(done.supports) == 18
    assert model.sparsity.recipe == recipe and model.sparsity.plan is None
    record = model.sparsity.sites["model.layers.0.mlp.up_proj"]
    assert record["density"] == 0.25 and record["support"] == done.supports["model.layers.0.mlp.up_proj"].hash()
    again = sw.prune(copy.deepcopy(dense), recipe, batches, progress=False)
    assert again.supports == model.sparsity.supports
    (tmp_path / "out" / "supports" / "model.layers.0.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"layers\.0\.safetensors is not a readable"):
        sw.load(tmp_path / "out")


def test_methods_that_need_the_whole_model_are_refused_before_anything_is_written(dense, batches, tmp_path):
    with pytest.raises(ModelError, match="load it and use `prune`"):
        prune_folder(tmp_path / "dense", tmp_path / "out", "snip", batches, progress=False)
    assert not (tmp_path / "out.partial").exists()


def test_an_output_that_exists_is_refused(dense, batches, tmp_path):
    with pytest.raises(CheckpointError, match="exists"):
        prune_folder(tmp_path / "dense", tmp_path / "dense", "wanda", batches, progress=False)
