"""Packed and factorised layers on disk: their metadata as JSON, and the empty layers built from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparseworks.core import operator
from sparseworks.core.errors import CheckpointError, KernelError, ModelError
from sparseworks.exec.conv import SparseConv2d
from sparseworks.exec.modules import SparseLinear
from sparseworks.exec.pointwise import SparseConv1x1


@dataclass(frozen=True)
class Kind:
    """How one class of packed layer is described and built empty."""

    layer: type[nn.Module]
    describe: Callable[[Any], dict[str, Any]]
    build: Callable[[Mapping[str, Any]], nn.Module]


def _describe_conv(layer: SparseConv1x1) -> dict[str, Any]:
    return {"stride": list(layer.stride), "linear": layer.linear.metadata()}


def _build_conv(meta: Mapping[str, Any]) -> SparseConv1x1:
    return SparseConv1x1(SparseLinear.from_metadata(meta["linear"]), stride=meta["stride"])


KINDS: dict[str, Kind] = {
    "SparseLinear": Kind(SparseLinear, SparseLinear.metadata, SparseLinear.from_metadata),
    "SparseConv1x1": Kind(SparseConv1x1, _describe_conv, _build_conv),
    "SparseConv2d": Kind(SparseConv2d, SparseConv2d.metadata, SparseConv2d.from_metadata),
}


def packed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> packed layer; the linear layer inside a packed convolution is part of it, not listed itself."""
    kinds = tuple(kind.layer for kind in KINDS.values())
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if isinstance(module, kinds) and path.rpartition(".")[0] not in found:
            found[path] = module
    return found


def describe(layer: nn.Module) -> dict[str, Any]:
    """JSON-able description of a packed layer."""
    name = next(name for name, kind in KINDS.items() if isinstance(layer, kind.layer))
    return {"layer": name, **KINDS[name].describe(layer)}


def build_empty(path: str, meta: Mapping[str, Any]) -> nn.Module:
    """The empty layer that `describe` described.

    Raises:
        CheckpointError: it needs a format, kernel or layer that this version does not have.
    """
    import sparseworks.exec  # noqa: F401 - registers formats and kernels

    try:
        return KINDS[meta["layer"]].build(meta)
    except (KernelError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The packed layer {path!r} cannot be rebuilt by this version of sparseworks ({error}); "
            "use the version that wrote the folder, or save with layout='bitmask'."
        ) from error


def factorised_layers(model: nn.Module) -> dict[str, operator.LinearOperator]:
    """Path -> operator; the factors inside an operator are part of it, not listed themselves."""
    found: dict[str, operator.LinearOperator] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        inside = any(path.startswith(f"{known}.") for known in list(found)[-1:])
        if isinstance(module, operator.LinearOperator) and not inside:
            found[path] = module
    return found


def build_operator(path: str, meta: Mapping[str, Any]) -> operator.LinearOperator:
    """The empty operator that `core.operator.describe` described.

    Raises:
        CheckpointError: it is of a kind that this version does not have.
    """
    try:
        return operator.rebuild(meta)
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The factorised layer {path!r} cannot be rebuilt by this version of sparseworks ({error}); "
            "use the version that wrote the folder."
        ) from error


def swap(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put `layer` in the place `path` of `model`.

    Raises:
        ModelError: there is no such place.
    """
    owner, _, leaf = path.rpartition(".")
    try:
        model.get_submodule(path)
        setattr(model.get_submodule(owner), leaf, layer)
    except AttributeError as error:
        raise ModelError(f"The model has no layer {path!r} ({error}); it is not the model that was saved.") from error
