"""Smaller dense layers: units that are gone from all members of a coupling leave the tensors for good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.core.site import Coupling, Member
from sparseworks.stream.sites import whole_site

VECTORS = ("weight", "bias", "running_mean", "running_var")
"""What a module that normalises by channel holds, one entry a channel."""

_Axis = Literal["rows", "cols", "norm"]
_Masks = dict[tuple[str, _Axis], Bool[Tensor, " length"]]


@torch.no_grad()
def slice_units(model: nn.Module, listed: Sequence[Coupling], kept: Mapping[str, Bool[Tensor, " units"]]) -> None:
    """Cut the units that are not kept out of every member: rows with their biases, columns, entries of norms; in place.

    Modules keep their names and get new, smaller parameters: build a new optimiser afterwards.

    Args:
        listed: couplings of `kept`, as `couplings(model)` or `dependency_groups(model, example)` gives them.
        kept: name of a coupling -> which of its units stay; couplings that are not named stay whole.

    Raises:
        ModelError: a member is not a whole linear or convolution layer of its own, or a grouped convolution would lose parts
            of a group; nothing was changed.
        ShapeError: a mask of another length, or one that keeps nothing.
    """
    masks = unit_masks(model, listed, kept)
    plans = [(_plan(model, path, axis, mask), axis) for (path, axis), mask in masks.items()]
    for plan, axis in plans:
        _cut(*plan, ("weight",) if axis == "cols" else VECTORS)


@torch.no_grad()
def zero_units(model: nn.Module, listed: Sequence[Coupling], kept: Mapping[str, Bool[Tensor, " units"]]) -> None:
    """Set to zero what `slice_units` would cut, so that the model computes what the sliced one does; in place.

    Running statistics of norms stay: with weight and bias at zero they say nothing.

    Raises:
        ModelError, ShapeError: as `slice_units`.
    """
    for (path, axis), mask in unit_masks(model, listed, kept).items():
        module = model.get_submodule(path)
        if axis == "norm":
            for vector in module.parameters(recurse=False):
                vector.masked_fill_(~mask.to(vector.device), 0.0)
            continue
        site = whole_site(model, path)
        weight = site.read(model)
        on = mask.to(weight.device)
        site.write(model, torch.where(on.unsqueeze(1) if axis == "rows" else on, weight, 0.0))
        bias = dict(module.named_parameters(recurse=False)).get("bias") if axis == "rows" else None
        if bias is not None:
            bias.masked_fill_(~on, 0.0)


def unit_masks(model: nn.Module, listed: Sequence[Coupling], kept: Mapping[str, Bool[Tensor, " units"]]) -> _Masks:
    """(module, "rows", "cols" or "norm") -> which indices stay when the units not in `kept` go; all couplings together.

    Raises:
        ModelError: a member is not a whole linear or convolution layer of its own.
        ShapeError: a mask of another length, or one that keeps nothing.
    """
    masks: _Masks = {}
    for c in (c for c in listed if c.name in kept):
        mask = kept[c.name]
        if tuple(mask.shape) != (c.units,) or not bool(mask.any()):
            raise ShapeError(
                f"Coupling {c.name!r} has {c.units} units and must keep at least one, got a mask of {mask}."
            )
        for axis, m, length in _axes(model, c):
            along = c.along(m, mask.cpu(), length)
            masks[m.site, axis] = masks[m.site, axis] & along if (m.site, axis) in masks else along
    return masks


def _axes(model: nn.Module, coupling: Coupling) -> Iterator[tuple[_Axis, Member, int]]:
    for m in coupling.members:
        yield m.axis, m, whole_site(model, m.site).shape[m.axis == "cols"]
    for m in coupling.norms:
        yield "norm", m, _channels(model.get_submodule(m.site))


def _channels(norm: nn.Module) -> int:
    for name in ("num_features", "num_parameters"):
        if isinstance(getattr(norm, name, None), int):
            return getattr(norm, name)
    raise ModelError(f"Module {type(norm).__name__} does not say how many channels it normalises.")


# -- cutting ----------------------------------------------------------------------------------------------------------

_Plan = tuple[nn.Module, dict[str, int], int, Tensor]
"""A module, its counts afterwards, the dimension of the weight, and the indices that stay."""


def _plan(model: nn.Module, path: str, axis: _Axis, mask: Bool[Tensor, " length"]) -> _Plan:
    module, at = model.get_submodule(path), mask.nonzero().flatten()
    if not len(at):
        raise ShapeError(f"Nothing of {path!r} would be left.")
    if axis == "norm":
        return module, {"num_features" if hasattr(module, "num_features") else "num_parameters": len(at)}, 0, at
    site = whole_site(model, path)
    if site.kernel and axis == "cols":
        runs = mask.reshape(-1, module.get_parameter("weight").shape[1])  # one run of the channels at every position
        if not bool((runs == runs[0]).all()):
            raise ModelError(f"Layer {path!r} would keep a channel at some positions of its kernel only.")
        at = runs[0].nonzero().flatten()
        if site.groups > 1:
            raise ModelError(f"Layer {path!r} is a grouped convolution, whose inputs go with the rows of their group.")
        return module, {"in_channels": len(at)}, 1, at
    if site.kernel:
        return module, _grouped(path, module, mask), 0, at
    rows, hugging = axis == "rows", site.kind == "hf_conv1d"
    counts = ("nf" if rows else "nx") if hugging else "out_features" if rows else "in_features"
    return module, {counts: len(at)}, int(rows == hugging), at


def _grouped(path: str, module: nn.Module, mask: Bool[Tensor, " out"]) -> dict[str, int]:
    counts, groups = {"out_channels": int(mask.sum())}, int(module.groups)  # type: ignore[arg-type]
    if groups == 1:
        return counts
    by_group = mask.reshape(groups, -1)
    if not bool((by_group == by_group[:, :1]).all()):
        raise ModelError(
            f"Layer {path!r} is a grouped convolution and would keep parts of a group: groups go as a whole."
        )
    left = int(by_group[:, 0].sum())
    return counts | {"groups": left, "in_channels": left * module.get_parameter("weight").shape[1]}


def _cut(module: nn.Module, counts: Mapping[str, int], dim: int, at: Tensor, names: Sequence[str]) -> None:
    """Parameters and buffers `names` by `at`: the weight along `dim`, vectors along their only dimension."""
    for name in names:
        old = getattr(module, name, None)
        if old is not None:
            new = old.index_select(dim if name == "weight" else 0, at.to(old.device)).contiguous()
            setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    for name, count in counts.items():
        setattr(module, name, count)
