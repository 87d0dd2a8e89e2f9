"""Read checkpoints of llm-compressor in the formats `sparse-bitmask` and `sparse-24-bitmask`, which their owner no longer reads.

The layout is that of vllm-project/compressed-tensors before its sparse code was removed in March 2026. A weight `<layer>.weight` is stored as
`<layer>.compressed` (kept values, row-major; `(rows, cols / 2)` for 2:4), `<layer>.bitmask` (uint8, `ceil(cols / 8)` bytes a row,
little-endian), `<layer>.shape`, and for `sparse-bitmask` `<layer>.row_offsets` (index of the first value of each row).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor, nn

from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.core.support import Support
from sparseworks.io.bitmask import decode
from sparseworks.io.skeleton import build, fill
from sparseworks.io.sparsity import Sparsity
from sparseworks.io.tensors import read_tensors
from sparseworks.stream.sites import sites as find_sites

_PARTS = {
    "sparse-bitmask": ("compressed", "bitmask", "shape", "row_offsets"),
    "sparse-24-bitmask": ("compressed", "bitmask", "shape"),
}


def is_llmcompressor(folder: Path) -> bool:
    """Whether the `config.json` of a folder names a sparsity format of llm-compressor."""
    return _sparsity_config(folder).get("format") in _PARTS


def load_llmcompressor(folder: Path | str) -> nn.Module:
    """The dense model of an llm-compressor checkpoint; its supports, as the bitmasks state them, are `model.sparsity.supports`.

    Raises:
        CheckpointError: parts of a weight are missing, damaged or do not fit together.
        ModelError: another format, quantised as well, or not a model that transformers knows.
    """
    folder = Path(folder)
    format = _sparsity_config(folder).get("format")
    if format not in _PARTS:
        raise ModelError(f"{folder} has sparsity format {format!r}; this reader knows {', '.join(_PARTS)}.")
    if _quantization(folder).get("config_groups"):
        raise ModelError(
            f"{folder} is quantised as well as sparse; decompress it with the compressed-tensors that wrote it."
        )
    tensors, masks = unpack_all(_read_shards(folder), _PARTS[format])
    model = build(folder)
    del model.config.quantization_config  # type: ignore[union-attr] # it is dense from here on
    tied = _retie(model, tensors)
    fill(model, tensors, ((n, t if n in masks else t.clone()) for n, t in tensors.items()), tied)
    supports = _supports(model.eval(), masks, tied)
    facts = {"sites": {}, "meta": {"source": f"llm-compressor {format}"}, "plan": None}
    model.sparsity = Sparsity(supports, "dense", facts)  # type: ignore[assignment]
    return model


def unpack_all(stored: Mapping[str, Tensor], parts: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Dense tensors by name, and the masks of those that were compressed.

    Args:
        stored: as read from the safetensors files.
        parts: suffixes that together make one weight.

    Raises:
        CheckpointError: parts of a weight are missing or do not fit together.
    """
    heads = sorted(name.removesuffix(".compressed") for name in stored if name.endswith(".compressed"))
    used = {f"{head}.{part}" for head in heads for part in parts}
    dense = {name: tensor for name, tensor in stored.items() if name not in used}
    masks: dict[str, Tensor] = {}
    for head in heads:
        missing = [part for part in parts if f"{head}.{part}" not in stored]
        if missing:
            raise CheckpointError(f"Weight {head!r} lacks its {missing[0]!r}: the checkpoint is incomplete.")
        name = head if head.endswith(".weight") else f"{head}.weight"
        dense[name], masks[name] = unpack(head, {part: stored[f"{head}.{part}"] for part in parts})
    return dense, masks


def unpack(head: str, parts: Mapping[str, Tensor]) -> tuple[Shaped[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """One weight and its mask: `dense[mask] = compressed`.

    Raises:
        CheckpointError: counts, offsets and shape do not fit together.
    """
    shape = tuple(int(n) for n in parts["shape"].reshape(-1))
    mask = _mask(head, parts["bitmask"], shape)
    values = parts["compressed"].reshape(-1)
    if values.numel() != int(mask.sum()):
        raise CheckpointError(
            f"Weight {head!r} has {values.numel()} values but {int(mask.sum())} bits set: the checkpoint is damaged."
        )
    if "row_offsets" in parts:
        counts = mask.reshape(-1, shape[-1]).sum(dim=1)
        if not torch.equal(parts["row_offsets"].reshape(-1).long(), counts.cumsum(0) - counts):
            raise CheckpointError(
                f"Weight {head!r}: the row offsets do not fit the bitmask: the checkpoint is damaged."
            )
    return decode(values, mask, head), mask


def _mask(head: str, bits: UInt8[Tensor, "rows bytes"], shape: tuple[int, ...]) -> Bool[Tensor, "*shape"]:
    rows, width = int(np.prod(shape[:-1])), -(-shape[-1] // 8) if shape else 0
    if not shape or bits.dtype != torch.uint8 or bits.numel() != rows * width:
        raise CheckpointError(f"Weight {head!r}: a bitmask of {bits.numel()} bytes does not fit the shape {shape}.")
    flags = np.unpackbits(bits.numpy().reshape(rows, width), axis=-1, bitorder="little")
    if flags[:, shape[-1] :].any():
        raise CheckpointError(f"Weight {head!r}: bits are set beyond the last column: the checkpoint is damaged.")
    return torch.from_numpy(flags[:, : shape[-1]].astype(bool)).reshape(shape)


def _supports(model: nn.Module, masks: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, Support]:
    """Supports of the sites whose bitmask leaves something out."""
    found: dict[str, Support] = {}
    for site in find_sites(model, include=["*"]):
        mask = masks.get(tied.get(site.parameter, site.parameter))
        if mask is not None and not bool(site.view(mask).all()):
            found[site.name] = Support.from_mask(site.view(mask).contiguous())
    return found


def _retie(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names the file leaves out because the model ties them to one that is there."""
    same: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name in tensors:
            same.setdefault(id(tensor), name)
    return {name: same[id(t)] for name, t in state.items() if name not in tensors and id(t) in same}


def _quantization(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}).") from error
    return config.get("quantization_config") or config.get("compression_config") or {}


def _sparsity_config(folder: Path) -> dict[str, Any]:
    return _quantization(folder).get("sparsity_config") or {}


def _read_shards(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if not files:
        raise CheckpointError(f"{folder} has no .safetensors file.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_tensors(file)
    return tensors
