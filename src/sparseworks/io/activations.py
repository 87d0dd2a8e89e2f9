"""Masked layers on disk: their rules as JSON, their constants beside the weights, and the layers built from both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sparseworks.core.errors import CheckpointError, KernelError, ModelError
from sparseworks.core.support import Support
from sparseworks.exec.executing import ExecutingLinear
from sparseworks.exec.masked import MaskedLinear, MaskedOutput, Rotated, rule_from


def describe_activations(model: nn.Module, executing: list[str]) -> dict[str, dict[str, Any]]:
    """Path -> JSON-able description of every masked layer and rotation; `executing` are the paths that kernels run."""
    found: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules():
        if isinstance(module, MaskedLinear):
            found[path] = {"layer": "masked_linear", "executing": path in executing, **module.metadata()}
        elif isinstance(module, MaskedOutput):
            found[path] = {"layer": "masked_output", **module.metadata()}
        elif isinstance(module, Rotated):
            found[path] = {"layer": "rotated", "width": module.rotation.shape[0]}
    return found


def build_activations(model: nn.Module, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the layers of `describe_activations` in their places, empty where they hold values.

    Raises:
        ModelError: the model lacks a place.
        CheckpointError: a layer that this version does not know.
    """
    for path, meta in facts.items():
        try:
            before = model.get_submodule(path)
        except AttributeError:
            raise ModelError(f"The model has no layer {path!r}; it is not the model that was saved.") from None
        try:
            model.set_submodule(path, _build(before, meta))
        except (KernelError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"The masked layer {path!r} cannot be rebuilt ({error!r}).") from error


def execute_activations(
    model: nn.Module, facts: Mapping[str, Mapping[str, Any]], supports: Mapping[str, Support]
) -> None:
    """Kernels in the place of the layers that had them, once all values are there."""
    for path, meta in facts.items():
        layer = model.get_submodule(path)
        if meta.get("executing") and isinstance(layer, MaskedLinear):
            model.set_submodule(path, ExecutingLinear(layer, supports.get(path)))


def _build(before: nn.Module, meta: Mapping[str, Any]) -> nn.Module:
    kind = meta["layer"]
    if kind == "masked_linear":
        return MaskedLinear.from_metadata(meta)
    if kind == "masked_output":
        return MaskedOutput(before, rule_from(meta["rule"]), relu=meta["relu"])
    if kind == "rotated":
        return Rotated(before, torch.empty(meta["width"], meta["width"], device="meta"))
    raise ValueError(f"unknown kind {kind!r}")
