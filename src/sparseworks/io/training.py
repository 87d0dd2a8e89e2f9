"""Training state on disk without pickle: model, optimiser, random numbers and plain facts, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseworks.core.errors import CheckpointError

_FACTS = "sparseworks"


def save_training(
    path: Path, model: nn.Module, optimizer: Optimizer, facts: dict[str, Any], *, extra: dict[str, Tensor] | None = None
) -> None:
    """Write one safetensors file with parameters, buffers, optimiser state, the torch RNG state and JSON facts (temp + rename).

    Raises:
        CheckpointError: the disk is full or not writable; the previous file is untouched.
    """
    tensors = {f"model.{k}": v.detach().contiguous() for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    tensors |= {f"extra.{k}": v.detach().contiguous() for k, v in (extra or {}).items()}
    state = optimizer.state_dict()
    for index, slots in state["state"].items():
        for key, value in slots.items():
            tensors[f"optim.{index}.{key}"] = torch.as_tensor(value).detach().contiguous()
    tensors["rng"] = torch.get_rng_state()
    meta = json.dumps({"facts": facts, "groups": state["param_groups"]})
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.clone() for k, v in tensors.items()}, partial, metadata={_FACTS: meta})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
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
