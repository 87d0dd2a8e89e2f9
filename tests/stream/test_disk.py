from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.io.skeleton import build
from sparseworks.stream import InMemory, Residency, blocks, capture, chains, held, replay
from sparseworks.stream.activations import Activations
from sparseworks.stream.disk import OnDisk
from sparseworks.stream.memory import model_bytes
from sparseworks.stream.shards import INDEX, Shards

NAMES = ["llama", "tied", "gpt2", "bert", "t5", "mixtral", "gptoss"]


@pytest.fixture
def saved(tiny, tmp_path):
    """`saved(name)`: a model and the folder it was saved to, in several shards."""

    def save(name: str):
        model = tiny(name)
        model.save_pretrained(tmp_path / name, max_shard_size="40KB")
        return model, tmp_path / name

    return save


def run(model: nn.Module, batch) -> torch.Tensor:
    with torch.no_grad():
        out = model(**batch)
    return out.last_hidden_state if hasattr(out, "last_hidden_state") else out.logits


def load_whole(folder) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def on_meta(model: nn.Module, prefix: str) -> list[bool]:
    return [p.is_meta for n, p in model.named_parameters() if n.startswith(prefix)]


class TestReading:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_whole_forward_pass_is_equal_and_leaves_nothing_behind(self, saved, batch_for, name):
        model, folder = saved(name)
        disk = OnDisk(build(folder).eval(), folder)
        assert torch.equal(run(disk.model, batch_for(name)), run(model, batch_for(name)))
        for block in blocks(disk.model):
            assert all(on_meta(disk.model, block.name + "."))

    def test_block_by_block(self, saved, batch_for):
        model, folder = saved("llama")
        batches = [batch_for("llama", seed=i) for i in range(3)]
        disk = OnDisk(build(folder).eval(), folder)
        chain = chains(disk.model, blocks(disk.model), batches[0])[0]
        taken, expected = (capture(m, chain, batches, Activations()) for m in (disk.model, model))
        for block in chain:
            with held(disk, block):
                replay(disk.model, block, taken)
            replay(model, block, expected)
        assert all(torch.equal(taken.hidden[i], expected.hidden[i]) for i in range(3))

    def test_capture_reads_the_blocks_for_one_batch_only(self, saved, batch_for, monkeypatch):
        _, folder = saved("llama")
        disk, entered = OnDisk(build(folder).eval(), folder), []
        enter = disk.enter
        monkeypatch.setattr(disk, "enter", lambda block: (entered.append(block.index), enter(block)))
        capture(disk.model, blocks(disk.model), [batch_for("llama", seed=i) for i in range(6)], Activations())
        assert entered == [0, 1]  # the last one need not run at all

    def test_entering_nests(self, saved):
        _, folder = saved("llama")
        disk = OnDisk(build(folder).eval(), folder)
        block = blocks(disk.model)[1]
        with held(disk, block):
            with held(disk, block):
                pass
            assert not any(on_meta(disk.model, "model.layers.1."))
        assert all(on_meta(disk.model, "model.layers.1."))

    def test_a_block_is_left_after_an_error_too(self, saved):
        _, folder = saved("llama")
        disk = OnDisk(build(folder).eval(), folder)
        with pytest.raises(ZeroDivisionError), held(disk, blocks(disk.model)[0], changed=True):
            _ = 1 / 0
        assert all(on_meta(disk.model, "model.layers.0."))

    def test_tied_weights_stay_tied(self, saved):
        _, folder = saved("tied")
        disk = OnDisk(build(folder).eval(), folder)
        assert disk.model.lm_head.weight is disk.model.model.embed_tokens.weight
        assert not disk.model.lm_head.weight.is_meta

    def test_the_base_models_prefix_may_be_missing_or_extra(self, saved, batch_for):
        import transformers

        model, folder = saved("llama")
        disk = OnDisk(transformers.LlamaModel._from_config(model.config).to("meta"), folder)
        assert not disk.model.embed_tokens.weight.is_meta
        inner = folder.parent / "inner"
        model.model.save_pretrained(inner)
        with pytest.raises(CheckpointError, match=r"lacks 1 parameters.*lm_head"):
            OnDisk(build(folder), inner)

    @pytest.mark.parametrize("name", ["llama", "tied", "gemma", "gpt2", "opt", "bert"])
    def test_embeddings_read_only_the_rows_that_are_looked_up(self, saved, batch_for, name, monkeypatch):
        import sparseworks.stream.tables as tables

        model, folder = saved(name)
        disk, rows = OnDisk(build(folder).eval(), folder), []
        own = tables.read_rows
        monkeypatch.setattr(
            tables, "read_rows", lambda place, at, dtype: (rows.append(at.numel()), own(place, at, dtype))[1]
        )
        batch = batch_for(name)
        assert torch.equal(run(disk.model, batch), run(model, batch))
        assert rows[0] == batch["input_ids"].unique().numel() < 64

    def test_an_embedding_that_was_changed_is_the_one_in_memory(self, saved, batch_for):
        model, folder = saved("llama")
        disk = OnDisk(build(folder).eval(), folder, folder.parent / "out")
        with held(disk, None, changed=True), torch.no_grad():
            for m in (model, disk.model):
                m.model.embed_tokens.weight.mul_(2)
        assert torch.equal(run(disk.model, batch_for("llama")), run(model, batch_for("llama")))
        assert torch.equal(load_whole(disk.finish())["model.embed_tokens.weight"], model.model.embed_tokens.weight)

    def test_ids_out_of_range_are_refused_as_ever(self, saved):
        _, folder = saved("llama")
        disk = OnDisk(build(folder).eval(), folder)
        with pytest.raises(IndexError):
            disk.model(input_ids=torch.tensor([[3, 64]]))

    def test_chains_need_no_logits(self, saved, batch_for):
        _, folder = saved("llama")
        disk, called = OnDisk(build(folder).eval(), folder), []
        disk.model.lm_head.register_forward_hook(lambda *_: called.append(1))
        found = chains(disk.model, blocks(disk.model), batch_for("llama"))
        assert [len(chain) for chain in found] == [3] and not called

    def test_resident_bytes_are_the_rest_without_embeddings_and_the_largest_block(self, saved):
        model, folder = saved("llama")
        disk = OnDisk(build(folder).eval(), folder)
        layer = sum(p.numel() * 4 for p in model.model.layers[0].parameters())
        assert disk.resident_bytes == model_bytes(model) - 2 * layer - model.model.embed_tokens.weight.numel() * 4
        assert isinstance(disk, Residency) and isinstance(InMemory(model), Residency)
        assert InMemory(model).resident_bytes == model_bytes(model)

    def test_another_dtype_of_the_model_converts(self, saved):
        model, folder = saved("llama")
        disk = OnDisk(build(folder).eval().to(torch.bfloat16), folder)
        with held(disk, blocks(disk.model)[0]):
            weight = disk.model.model.layers[0].mlp.up_proj.weight
            assert torch.equal(weight, model.model.layers[0].mlp.up_proj.weight.bfloat16())


class TestWriting:
    @pytest.mark.parametrize("name", NAMES)
    def test_changed_blocks_and_the_rest_are_read_by_any_loader(self, saved, tmp_path, name):
        model, folder = saved(name)
        disk = OnDisk(build(folder).eval(), folder, tmp_path / "out")
        block = blocks(disk.model)[1]
        with held(disk, block, changed=True):
            for p in block.module(disk.model).parameters():
                p.mul_(2)
        for p in block.module(model).parameters():
            p.detach().mul_(2)
        assert disk.finish() == tmp_path / "out"
        again = type(model).from_pretrained(tmp_path / "out")
        expected = model.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in again.state_dict().items())
        assert not (tmp_path / "out.partial").exists()

    def test_a_changed_block_is_read_back_as_changed_and_the_source_is_untouched(self, saved, tmp_path):
        _, folder = saved("llama")
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        disk = OnDisk(build(folder).eval(), folder, tmp_path / "out")
        block = blocks(disk.model)[0]
        for expected in (0.0, 1.0):
            with held(disk, block, changed=True):
                disk.model.model.layers[0].mlp.up_proj.weight.fill_(expected)
            with held(disk, block):
                assert (disk.model.model.layers[0].mlp.up_proj.weight == expected).all()
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before

    def test_the_index_is_complete_and_other_files_come_along(self, saved, tmp_path):
        model, folder = saved("llama")
        (folder / "tokenizer.json").write_text("{}")
        disk = OnDisk(build(folder).eval(), folder, tmp_path / "out")
        disk.finish()
        index = json.loads((tmp_path / "out" / INDEX).read_text())
        assert set(index["weight_map"]) == set(model.state_dict())
        assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
        assert (tmp_path / "out" / "tokenizer.json").exists() and (tmp_path / "out" / "config.json").exists()

    def test_buffers_that_are_saved_come_along(self, tmp_path):
        def make() -> nn.Module:
            layer = lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))  # noqa: E731
            return nn.Sequential(layer(), layer(), layer())

        model = make()
        model[1][1].running_mean.fill_(5.0)
        (tmp_path / "in").mkdir()
        save_file(model.state_dict(), tmp_path / "in" / "model.safetensors")
        empty = make()
        for module in empty.modules():
            for leaf, p in list(module._parameters.items()):
                module._parameters[leaf] = nn.Parameter(p.to("meta"))
        disk = OnDisk(empty.eval(), tmp_path / "in", tmp_path / "out")
        x = torch.randn(2, 3)
        assert torch.equal(disk.model(x), model.eval()(x))
        disk.finish()
        tensors: dict = {}
        for file in (tmp_path / "out").glob("*.safetensors"):
            tensors |= load_file(file)
        assert tensors.keys() == model.state_dict().keys()
        assert torch.equal(tensors["1.1.running_mean"], torch.full((3,), 5.0))


class TestRefusals:
    def test_an_output_that_exists(self, saved, tmp_path):
        _, folder = saved("llama")
        (tmp_path / "out").mkdir()
        with pytest.raises(CheckpointError, match="exists; give another"):
            OnDisk(build(folder), folder, tmp_path / "out")

    def test_what_a_killed_run_left_is_removed(self, saved, tmp_path):
        _, folder = saved("llama")
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / "model-rest.safetensors").write_bytes(b"half")
        OnDisk(build(folder).eval(), folder, tmp_path / "out").finish()
        assert Shards.open(tmp_path / "out").where

    def test_changes_without_an_output(self, saved):
        _, folder = saved("llama")
        disk = OnDisk(build(folder), folder)
        with (
            pytest.raises(CheckpointError, match="without an output folder"),
            held(disk, blocks(disk.model)[0], changed=True),
        ):
            pass

    def test_a_model_without_blocks(self, tmp_path):
        model = nn.Sequential(nn.Linear(2, 2))
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match="no repeated blocks"):
            OnDisk(model, tmp_path)

    def test_no_weights(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"neither model\.safetensors"):
            Shards.open(tmp_path)

    def test_names_that_are_converted_on_loading(self, saved):
        _, folder = saved("vit")
        with pytest.raises(CheckpointError, match=r"lacks 48 parameters of ViTModel.*Load the model whole"):
            OnDisk(build(folder), folder)

    def test_a_missing_shard_and_a_truncated_one(self, saved):
        _, folder = saved("llama")
        victim = sorted(folder.glob("*.safetensors"))[0]
        data = victim.read_bytes()
        victim.write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match=rf"{victim.name}.*truncated or damaged"):
            Shards.open(folder)
        victim.unlink()
        with pytest.raises(CheckpointError, match=victim.name):
            Shards.open(folder)

    def test_a_broken_index(self, tmp_path):
        (tmp_path / INDEX).write_text('{"weight_map": [')
        with pytest.raises(CheckpointError, match="not a readable index"):
            Shards.open(tmp_path)

    def test_weights_of_another_shape(self, saved):
        _, folder = saved("llama")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 65}))
        with pytest.raises(CheckpointError, match=r"embed_tokens.*\(64, 32\).*\(65, 32\)"):
            OnDisk(build(folder), folder)

    def test_a_full_disk_leaves_no_half_file(self, saved, tmp_path, monkeypatch):
        _, folder = saved("llama")
        disk = OnDisk(build(folder).eval(), folder, tmp_path / "out")

        def full(tensors, path, metadata=None):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("sparseworks.stream.shards.save_file", full)
        with (
            pytest.raises(CheckpointError, match=r"No space left.*Free some space"),
            held(disk, disk.blocks[0], changed=True),
        ):
            pass
        assert list((tmp_path / "out.partial").iterdir()) == [] and not (tmp_path / "out").exists()
