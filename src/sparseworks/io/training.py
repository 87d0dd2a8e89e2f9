"""Training state on disk without pickle: model, optimiser, random numbers and plain facts, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseworks.core.errors import CheckpointError
from sparseworks.io.folder import write_file
from sparseworks.io.tensors import Entry, safetensors_chunks

_FACTS = "sparseworks"


def save_training(
    path: Path, model: nn.Module, optimizer: Optimizer, facts: dict[str, Any], *, extra: dict[str, Tensor] | None = None
) -> None:
    """Write one safetensors file with parameters, buffers, optimiser state, the torch RNG state and JSON facts (temp + rename).

    Raises:
        CheckpointError: the disk is full or not writable, or the facts are not plain data; the previous file is untouched.
    """
    state = optimizer.state_dict()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    tensors |= {f"extra.{k}": v for k, v in (extra or {}).items()}
    for index, slots in state["state"].items():
        tensors |= {f"optim.{index}.{key}": torch.as_tensor(value) for key, value in slots.items()}
    tensors["rng"] = torch.get_rng_state()
    try:
        meta = {_FACTS: json.dumps({"facts": facts, "groups": state["param_groups"]})}
        write_file(path, safetensors_chunks([Entry.of(name, tensor) for name, tensor in tensors.items()], meta))
    except TypeError as error:
        raise CheckpointError(f"The facts of a training state must be plain data: {error}.") from error
    except OSError as error:
        raise CheckpointError(
            f"Cannot write the training state {path}: {error}. The previous one, if any, is untouched."
        ) from error


def load_training(path: Path, model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore what `save_training` wrote; returns the facts and extra tensors.

    Raises:
        CheckpointError: the file is damaged or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()[_FACTS])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable training state ({error}); delete it to start over.") from error
    try:
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optim."):
                _, index, key = name.split(".", 2)
                slots.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": slots, "param_groups": meta["groups"]})
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} belongs to another model or optimiser ({error}); delete it to start over."
        ) from error
    torch.set_rng_state(tensors["rng"])
    return meta["facts"], {k[6:]: v for k, v in tensors.items() if k.startswith("extra.")}
