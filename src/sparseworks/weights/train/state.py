"""The state of a sparsifier in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparseworks.core.errors import CheckpointError
from sparseworks.io.folder import write_file
from sparseworks.io.tensors import Entry, safetensors_chunks
from sparseworks.weights.train.sparsifier import Sparsifier

_FACTS = "sparseworks"
_GROUPS = ("supports", "states", "learned", "masters", "frozen", "units")
_NESTED = ("states", "learned", "frozen")
_BY_SITE = ("states", "learned")


def save_state(path: Path | str, sparsifier: Sparsifier, *, write: bool = True) -> None:
    """Write `sparsifier.state_dict()`; with sharded parameters all ranks call it, and one of them has `write`.

    Raises:
        CheckpointError: the disk is full or not writable; the previous file is untouched.
    """
    state = sparsifier.state_dict()
    if not write:
        return
    tensors, facts = flat(state)
    try:
        entries = [Entry.of(name, tensor.contiguous()) for name, tensor in tensors.items()]
        write_file(Path(path), safetensors_chunks(entries, {_FACTS: json.dumps(facts)}))
    except OSError as error:
        raise CheckpointError(
            f"Cannot write the state of sparse training {path}: {error}. Free space or choose another folder."
        ) from error


def load_state(path: Path | str) -> dict[str, Any]:
    """What `save_state` wrote, for `Sparsifier(..., state=...)`.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return nested(tensors, json.loads(file.metadata()[_FACTS]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is not a readable state of sparse training ({error}).") from error


def flat(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`Sparsifier.state_dict()` as named tensors and plain facts."""
    facts = {key: value for key, value in state.items() if key not in _GROUPS}
    tensors = {f"supports|{name}": t for name, t in state["supports"].items()}
    for group in _NESTED:
        tensors |= {f"{group}|{name}|{key}": t for name, held in state[group].items() for key, t in held.items()}
    tensors |= {f"{group}|{name}": t for group in ("masters", "units") for name, t in state[group].items()}
    return tensors, facts


def nested(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flat`."""
    state: dict[str, Any] = {**facts, **{group: {} for group in _GROUPS}}
    for key, tensor in tensors.items():
        group, *names = key.split("|")
        if group in _NESTED:
            state[group].setdefault(names[0], {})[names[1]] = tensor
        else:
            state[group][names[0]] = tensor
    return state | {group: {name: state[group].get(name, {}) for name in state["supports"]} for group in _BY_SITE}
