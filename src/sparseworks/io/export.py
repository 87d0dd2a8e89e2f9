"""Export: a folder that any Hugging Face loader reads, zeros included, with nothing of ours in it."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from sparseworks.core.errors import ModelError
from sparseworks.exec.conv import SparseConv2d
from sparseworks.exec.pointwise import SparseConv1x1
from sparseworks.io.assets import asset_files, config_text
from sparseworks.io.folder import draft
from sparseworks.io.packed import packed_layers, swap
from sparseworks.io.save import unique_tensors
from sparseworks.io.sparsity import MODEL
from sparseworks.io.tensors import Entry, safetensors_chunks


def export_dense(
    folder: Path | str, model: nn.Module | Path | str, *, assets: Path | str | None = None, overwrite: bool = False
) -> Path:
    """Write `model` as `config.json` and a dense `model.safetensors`, for `AutoModel.from_pretrained(folder)` and the like.

    Args:
        folder: created; appears when complete.
        model: a Hugging Face model, dense or with packed layers (these are unpacked), or the name of a saved one.
        assets: folder whose tokenizer files are copied; default: that of a saved model given by name.
        overwrite: replace an existing exported model, in one step.

    Raises:
        ModelError: not a Hugging Face model, or a name that cannot be loaded.
        CheckpointError: the folder exists, or the disk is full or not writable.
    """
    if not isinstance(model, nn.Module):
        from sparseworks.io.load import load
        from sparseworks.io.models import assets_of

        assets = assets or assets_of(model)
        model = load(model)
    config = config_text(model)
    if config is None:
        raise ModelError(f"A {type(model).__name__} has no Hugging Face configuration; save its state_dict instead.")
    tensors, _ = unique_tensors(unpacked(model))
    with draft(Path(folder), overwrite=overwrite, marker="config.json") as made:
        made.write(MODEL, safetensors_chunks([Entry.of(name, tensor) for name, tensor in tensors.items()]))
        for name, source in asset_files(assets).items():
            made.copy(source, name)
        made.write_text("config.json", config)
    return Path(folder)


def unpacked(model: nn.Module) -> nn.Module:
    """`model` with every packed layer as a dense one again; other weights are shared, and a model without packed layers is returned itself."""
    packed = packed_layers(model)
    if not packed:
        return model
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for layer in packed.values():  # their parts are not needed in the copy
        shared |= {id(layer): layer}
    dense = copy.deepcopy(model, shared)
    for path, layer in packed.items():
        swap(dense, path, _dense_layer(layer))
    return dense


def _dense_layer(layer: nn.Module) -> nn.Module:
    weight = layer.dense_weight()  # type: ignore[operator]
    bias = (layer.linear if isinstance(layer, SparseConv1x1) else layer).bias
    out, features = weight.shape[:2]
    if isinstance(layer, SparseConv2d):
        moves = {name: getattr(layer.window, name) for name in ("stride", "padding", "dilation")}
        dense: nn.Module = nn.Conv2d(features, out, layer.window.kernel, **moves, bias=bias is not None, device="meta")
    elif isinstance(layer, SparseConv1x1):
        strides = layer.stride
        kind = nn.Conv1d if len(strides) == 1 else nn.Conv2d
        dense = kind(features, out, 1, stride=strides, bias=bias is not None, device="meta")  # type: ignore[arg-type]
        weight = weight.reshape(out, features, *[1] * len(strides))
    else:
        dense = nn.Linear(features, out, bias=bias is not None, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    dense.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]
    return dense.train(layer.training)
