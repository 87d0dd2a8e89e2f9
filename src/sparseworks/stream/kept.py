"""Supports on disk: a file of packed bits for each part of a model, mapped whole, so that those of a large model need no memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sparseworks.core.errors import CheckpointError, ShapeError
from sparseworks.core.support import Support
from sparseworks.stream.raw import header_of

SUPPORTS, RECIPE = "supports", "recipe.yaml"  # of a streamed model's folder, and of the folder of its supports
_SHAPES = "shapes"


def write_supports(file: Path, supports: Mapping[str, Support]) -> dict[str, Support]:
    """Write supports to one file, whole or not at all; the same supports, mapped from it.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    partial = file.with_name(f"{file.name}.partial")
    shapes = {name: list(support.shape) for name, support in supports.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: s.bits() for n, s in supports.items()}, partial, metadata={_SHAPES: json.dumps(shapes)})
        partial.replace(file)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        raise CheckpointError(f"Cannot write {file}: {error}. Free some space and run the same call again.") from error
    return read_supports(file)


def read_supports(path: Path | str) -> dict[str, Support]:
    """The supports in a file, or in all files of a folder (`supports` of what `prune_folder` wrote), by site.

    Raises:
        CheckpointError: there are none, or a file is damaged.
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise CheckpointError(f"{path} holds no supports.")
    found: dict[str, Support] = {}
    for file in files:
        try:
            places, metadata = header_of(file)
            shapes = json.loads(metadata[_SHAPES])
            whole = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
            for name, shape in shapes.items():
                at = places[name]
                found[name] = Support.from_bits(whole[at.start : at.start + at.nbytes], shape)
        except (CheckpointError, ShapeError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} is not a readable file of supports ({error}).") from error
    return found
