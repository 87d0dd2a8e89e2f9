"""Operators as named tensors and plain facts, so that a run of `factorise` that was cut off goes on with what it had fitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from sparseworks.core.operator import LinearOperator, describe, rebuild


def flat(operators: Mapping[str, LinearOperator]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of operators by layer, biases (which are the model's own) left out; a part that several share is named once."""
    first: dict[int, tuple[str, str]] = {}
    shared: list[tuple[str, str, str, str]] = []
    tensors: dict[str, Tensor] = {}
    for name, operator in operators.items():
        for path, part in _parts(operator):
            if id(part) in first:
                shared.append((name, path, *first[id(part)]))
            else:
                first[id(part)] = name, path
        tensors |= {
            f"{name}|{key}": t.detach().cpu().contiguous().clone()
            for key, t in operator.state_dict().items()
            if key != "bias"
        }
    metas = {name: {**describe(operator), "bias": False} for name, operator in operators.items()}
    return tensors, {"operators": metas, "shared": shared}


def nested(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, LinearOperator]:
    """Inverse of `flat`."""
    found = {}
    for name, meta in facts["operators"].items():
        own = {key.partition("|")[2]: t for key, t in tensors.items() if key.partition("|")[0] == name}
        found[name] = rebuild(meta)
        found[name].load_state_dict(own, assign=True)
    for name, path, other, at in facts["shared"]:
        owner, _, leaf = path.rpartition(".")
        setattr(found[name].get_submodule(owner), leaf, found[other].get_submodule(at))
    return found


def _parts(operator: LinearOperator) -> Iterator[tuple[str, LinearOperator]]:
    """Operators inside an operator, by their paths."""
    for path, part in operator.named_modules():
        if path and isinstance(part, LinearOperator):
            yield path, part
