from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.exec import SparseConv1x1, SparseLinear
from sparseworks.io import export_dense, save
from sparseworks.io.export import unpacked


def packed(case):
    fast = copy.deepcopy(case.model)
    for name, support in case.supports.items():
        owner, _, leaf = name.rpartition(".")
        layer = SparseLinear.from_linear(fast.get_submodule(name), support, kernel="csr16-fp32")
        setattr(fast.get_submodule(owner), leaf, layer)
    return fast


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("pack", [False, True], ids=["masked", "packed"])
def test_transformers_reads_the_export(tmp_path, request, kind, pack):
    from transformers import AutoModel, AutoModelForCausalLM

    case = request.getfixturevalue(kind)
    export_dense(tmp_path / "out", packed(case) if pack else case.model)
    auto = AutoModel if kind == "bert" else AutoModelForCausalLM
    back, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(case.output(back.eval()), case.output())


def test_there_is_nothing_of_ours_in_it(tmp_path, bert):
    export_dense(tmp_path / "out", bert.model)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    assert getattr(sw.load(tmp_path / "out"), "sparsity", None) is None


@pytest.mark.parametrize("layout", ["bitmask", "packed"])
def test_a_saved_folder_is_exported_by_name_with_its_tokenizer(tmp_path, bert, layout):
    from transformers import AutoModel

    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "vocab.txt").write_text("a\nb\n")
    model = packed(bert) if layout == "packed" else bert.model
    saved = save(tmp_path / "saved", model, bert.supports, layout=layout, assets=origin)
    export_dense(tmp_path / "out", saved)
    assert torch.equal(bert.output(AutoModel.from_pretrained(tmp_path / "out")), bert.output())
    assert (tmp_path / "out" / "vocab.txt").is_file()


def test_minilm_is_readable_by_sentence_transformers_loaders(tmp_path):
    export_dense(tmp_path / "out", "minilm")
    assert {"modules.json", "tokenizer.json", "1_Pooling", "sentence_bert_config.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }


def test_the_given_model_is_not_changed(bert):
    fast = packed(bert)
    dense = unpacked(fast)
    assert any(isinstance(m, SparseLinear) for m in fast.modules())
    assert not any(isinstance(m, SparseLinear) for m in dense.modules())
    assert dense.embeddings.word_embeddings.weight is fast.embeddings.word_embeddings.weight
    assert unpacked(dense) is dense


@pytest.mark.parametrize(("kind", "shape"), [(nn.Conv1d, (2, 6, 5)), (nn.Conv2d, (2, 6, 5, 4))])
def test_convolutions_are_unpacked(kind, shape):
    conv = kind(6, 4, 1, stride=2).requires_grad_(False)
    support = sw.Support.full((4, 6))
    model = nn.Sequential(SparseConv1x1.from_conv(conv, support, kernel="csr16-fp32"))
    x = torch.randn(shape)
    assert torch.equal(unpacked(model)(x), conv(x))


@pytest.mark.parametrize(
    "settings", [{"padding": 1}, {"stride": 2, "padding": (0, 2)}, {"dilation": (2, 1), "bias": False}]
)
def test_convolutions_of_any_window_are_unpacked(settings):
    conv = nn.Conv2d(3, 5, 3, **settings)
    keep = torch.rand(5, 27) < 0.5
    conv.weight.data *= keep.view(5, 3, 3, 3).permute(0, 3, 1, 2)
    model = nn.Sequential(sw.SparseConv2d.from_conv(conv, sw.Support.from_mask(keep)))
    x, dense = torch.randn(2, 3, 9, 8), unpacked(model)
    assert type(dense[0]) is nn.Conv2d and torch.equal(dense(x), conv(x))


def test_plain_modules_and_taken_places_are_refused(tmp_path, toy, bert):
    with pytest.raises(ModelError, match="no Hugging Face configuration"):
        export_dense(tmp_path / "out", toy.model)
    export_dense(tmp_path / "out", bert.model)
    with pytest.raises(CheckpointError, match="exists already"):
        export_dense(tmp_path / "out", bert.model)
    export_dense(tmp_path / "out", bert.model, overwrite=True)
