from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import sparseworks as sw
from sparseworks.core.errors import CheckpointError, ModelError


def compress(weight, format: str) -> dict[str, torch.Tensor]:
    """The format written out entry by entry: per row the kept values in order, and one bit a column, lowest bit first."""
    rows, cols = weight.shape
    values, offsets = [], []
    bits = [[0] * math.ceil(cols / 8) for _ in range(rows)]
    for r in range(rows):
        offsets.append(len(values))
        for c in range(cols):
            if weight[r, c] != 0:
                values.append(weight[r, c].item())
                bits[r][c // 8] += 1 << (c % 8)
    compressed = torch.tensor(values, dtype=weight.dtype)
    parts = {
        "compressed": compressed,
        "bitmask": torch.tensor(bits, dtype=torch.uint8),
        "shape": torch.tensor([rows, cols]),
    }
    if format == "sparse-bitmask":
        return parts | {"row_offsets": torch.tensor(offsets)}
    return parts | {"compressed": compressed.reshape(rows, cols // 2), "shape": parts["shape"].reshape(-1, 1)}


def write(folder, case, format: str = "sparse-bitmask", *, suffix: str = "", every: bool = False) -> None:
    """A checkpoint as llm-compressor leaves it; `every` compresses all matrices, as early versions did."""
    case.model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    names = (
        [f"{n}.weight" for n in case.supports]
        if not every
        else [n for n, t in tensors.items() if n.endswith("weight") and t.dim() == 2]
    )
    for name in names:
        head = name.removesuffix(".weight") + suffix
        tensors |= {f"{head}.{part}": t for part, t in compress(tensors.pop(name), format).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "sparsity_config": {"format": format, "global_sparsity": 0.7, "sparsity_structure": "unstructured"},
    }
    (folder / "config.json").write_text(json.dumps(config))


def two_of_four(case) -> None:
    for site in sw.sites(case.model):
        mask = (torch.arange(site.shape[1]) % 4 < 2).expand(site.shape)
        weight = torch.rand(site.shape) + 0.1
        site.write(case.model, weight * mask)
        case.supports[site.name] = sw.Support.from_mask(mask.clone())


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_bitmask(tmp_path, request, kind, dtype):
    case = request.getfixturevalue(kind)
    case.model.to(dtype)
    write(tmp_path / "m", case)
    back = sw.load(tmp_path / "m")
    assert back.dtype == dtype
    assert torch.equal(case.output(back), case.output())
    assert back.sparsity.supports == case.supports
    assert "llm-compressor" in back.sparsity.meta["source"]
    assert not (set(back.state_dict()) ^ set(case.model.state_dict()))


def test_sparse_24_bitmask(tmp_path, llama):
    two_of_four(llama)
    write(tmp_path / "m", llama, "sparse-24-bitmask")
    back = sw.load(tmp_path / "m")
    assert torch.equal(llama.output(back), llama.output())
    assert back.sparsity.supports == llama.supports


@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_early_checkpoints_name_and_compress_every_weight(tmp_path, llama, suffix):
    write(tmp_path / "m", llama, suffix=suffix, every=True)
    back = sw.load(tmp_path / "m")
    assert torch.equal(llama.output(back), llama.output())
    assert back.sparsity.supports == llama.supports  # dense matrices carry no support
    assert back.lm_head.weight is back.model.embed_tokens.weight


def test_shards(tmp_path, llama):
    folder = tmp_path / "m"
    write(folder, llama)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {n: file for file, part in shards.items() for n in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(llama.output(sw.load(folder)), llama.output())


def test_it_may_be_saved_as_ours(tmp_path, llama):
    write(tmp_path / "m", llama)
    back = sw.load(tmp_path / "m")
    sw.io.save(tmp_path / "out", back, back.sparsity.supports)
    assert torch.equal(llama.output(sw.load(tmp_path / "out")), llama.output())
    assert not hasattr(copy.deepcopy(back.config), "quantization_config")


HEAD = "model.layers.0.mlp.up_proj"
DAMAGE = {
    "a value is missing": (lambda t: t.update({f"{HEAD}.compressed": t[f"{HEAD}.compressed"][:-1]}), "values but"),
    "a bit flipped": (lambda t: t.update({f"{HEAD}.bitmask": t[f"{HEAD}.bitmask"] ^ 1}), "damaged"),
    "rows exchanged": (lambda t: t.update({f"{HEAD}.bitmask": t[f"{HEAD}.bitmask"].flip(0)}), "row offsets do not fit"),
    "offsets wrong": (
        lambda t: t.update({f"{HEAD}.row_offsets": t[f"{HEAD}.row_offsets"] + 1}),
        "row offsets do not fit",
    ),
    "shape wrong": (lambda t: t.update({f"{HEAD}.shape": torch.tensor([3, 3])}), "does not fit the shape"),
    "mask missing": (lambda t: t.pop(f"{HEAD}.bitmask"), "lacks its 'bitmask'"),
    "offsets missing": (lambda t: t.pop(f"{HEAD}.row_offsets"), "lacks its 'row_offsets'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoints_are_refused(tmp_path, llama, kind):
    damage, words = DAMAGE[kind]
    write(tmp_path / "m", llama)
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=words) as caught:
        sw.load(tmp_path / "m")
    assert HEAD in str(caught.value)


def test_bits_beyond_the_last_column_are_refused():
    from sparseworks.io.llmcompressor import unpack

    parts = {
        "compressed": torch.ones(1),
        "bitmask": torch.tensor([[8]], dtype=torch.uint8),
        "shape": torch.tensor([1, 3]),
    }
    with pytest.raises(CheckpointError, match="beyond the last column"):
        unpack("w", parts)


def test_truncated_and_missing_files_are_refused(tmp_path, llama):
    write(tmp_path / "m", llama)
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable"):
        sw.load(tmp_path / "m")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"has no \.safetensors file"):
        sw.load(tmp_path / "m")


def test_a_weight_the_model_lacks_is_refused(tmp_path, llama):
    write(tmp_path / "m", llama)
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in tensors.items() if not n.startswith(HEAD)}, path)
    with pytest.raises(ModelError, match=f"the file has no '{HEAD}.weight'"):
        sw.load(tmp_path / "m")


def test_quantised_checkpoints_are_refused(tmp_path, llama):
    write(tmp_path / "m", llama)
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["config_groups"] = {"group_0": {}}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantised as well as sparse"):
        sw.load(tmp_path / "m")


def test_other_formats_are_left_to_transformers(tmp_path, llama):
    from sparseworks.io.llmcompressor import is_llmcompressor, load_llmcompressor

    llama.model.save_pretrained(tmp_path / "m")
    assert not is_llmcompressor(tmp_path / "m")
    with pytest.raises(ModelError, match="sparsity format None"):
        load_llmcompressor(tmp_path / "m")
