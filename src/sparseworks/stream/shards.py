"""The Hugging Face layout of weights on disk: one safetensors file or many with an index; read by memory map, written in parts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparseworks.core.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Shards:
    """Weights in a folder.

    Attributes:
        folder: where they lie.
        where: tensor name -> file name.
    """

    folder: Path
    where: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path | str) -> Shards:
        """Find out which tensors are there; nothing is read but headers.

        Raises:
            CheckpointError: no safetensors weights, an index that cannot be read, or files that are missing or damaged.
        """
        folder = Path(folder)
        if (folder / INDEX).is_file():
            where = _index(folder / INDEX)
            for name in sorted(set(where.values())):
                _names(folder / name)
            return cls(folder, where)
        if not (folder / SINGLE).is_file():
            raise CheckpointError(
                f"{folder} holds neither {SINGLE} nor {INDEX}: streaming reads safetensors weights only. "
                f"Load the model whole and save it with `save_pretrained`."
            )
        return cls(folder, dict.fromkeys(_names(folder / SINGLE), SINGLE))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors mapped from their files: pages are read when touched, and changes stay in this process.

        Raises:
            CheckpointError: a file is missing, truncated or damaged.
        """
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.where[name], []).append(name)
        found: dict[str, Tensor] = {}
        for file, wanted in by_file.items():
            try:
                with safe_open(self.folder / file, framework="pt") as opened:
                    found |= {name: opened.get_tensor(name) for name in wanted}
            except (OSError, SafetensorError) as error:
                raise _damaged(self.folder / file, error) from error
        return found


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one file, whole or not at all.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        save_file({k: t.detach().contiguous() for k, t in tensors.items()}, partial, metadata={"format": "pt"})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"Cannot write {path}: {error}. Free some space and run the same call again.") from error


def write_index(folder: Path, where: Mapping[str, str], total: int) -> None:
    """Write the index of the shards in `folder`, `total` bytes together.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, indent=2)
    partial = folder / f"{INDEX}.partial-{os.getpid()}"
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / INDEX)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"Cannot write {folder / INDEX}: {error}.") from error


def _index(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(k): str(v) for k, v in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable index of safetensors files ({error!r}).") from error


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a readable safetensors file ({error}): it is missing, truncated or damaged. Download it again."
    )
