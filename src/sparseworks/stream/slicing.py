"""Smaller dense layers: units that are gone from all members of a coupling leave the tensors for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.core.site import Coupling, Member, Site
from sparseworks.stream.couplings import channels_of
from sparseworks.stream.sites import bias_name, whole_site
from sparseworks.stream.sites import sites as find_sites

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
    for parameter, dead in dead_entries(model, listed, kept):
        parameter.masked_fill_(dead, 0.0)


def dead_entries(
    model: nn.Module, listed: Sequence[Coupling], kept: Mapping[str, Bool[Tensor, " units"]]
) -> list[tuple[nn.Parameter, Bool[Tensor, "..."]]]:
    """Parameters that lose something, and where: rows and columns of layers, their biases, vectors of norms.

    Raises:
        ModelError, ShapeError: as `unit_masks`.
    """
    found: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def at(parameter: nn.Parameter) -> Tensor:
        empty = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
        return found.setdefault(id(parameter), (parameter, empty))[1]

    find = member_sites(model)
    for (name, axis), mask in unit_masks(model, listed, kept).items():
        if axis == "norm":
            for vector in model.get_submodule(name).parameters(recurse=False):
                at(vector).logical_or_(~mask.to(vector.device))
            continue
        site = find(name)
        dead = at(site.tensor(model))
        gone = ~mask.to(dead.device)
        site.put(dead, site.view(dead) | (gone.unsqueeze(1) if axis == "rows" else gone))
        bias = bias_name(model, site) if axis == "rows" else None
        if bias is not None:
            whole = at(model.get_parameter(bias))
            part = whole if site.expert is None else whole[site.expert]
            lo, hi = site.rows or (0, len(part))
            part[lo:hi].logical_or_(gone)
    return list(found.values())


def member_sites(model: nn.Module) -> Callable[[str], Site]:
    """`find(name)`: the site of a coupling's member, a part of a fused layer or an expert, or a grouped convolution as a whole.

    Raises (when called):
        ModelError: there is none.
    """
    named = {s.name: s for s in find_sites(model, include=["*"])}
    return lambda name: named[name] if name in named else whole_site(model, name)


def unit_masks(model: nn.Module, listed: Sequence[Coupling], kept: Mapping[str, Bool[Tensor, " units"]]) -> _Masks:
    """(site, or module with "norm"; "rows", "cols" or "norm") -> indices that stay when units not in `kept` go, all together.

    Raises:
        ModelError: the model has no such member.
        ShapeError: a mask of another length, or one that keeps nothing.
    """
    masks: _Masks = {}
    find = member_sites(model)
    for c in (c for c in listed if c.name in kept):
        mask = kept[c.name]
        if tuple(mask.shape) != (c.units,) or not bool(mask.any()):
            raise ShapeError(
                f"Coupling {c.name!r} has {c.units} units and must keep at least one, got a mask of {mask}."
            )
        for axis, m, length in _axes(model, c, find):
            along = c.along(m, mask.cpu(), length)
            masks[m.site, axis] = masks[m.site, axis] & along if (m.site, axis) in masks else along
    return masks


def _axes(model: nn.Module, coupling: Coupling, find: Callable[[str], Site]) -> Iterator[tuple[_Axis, Member, int]]:
    for m in coupling.members:
        yield m.axis, m, find(m.site).shape[m.axis == "cols"]
    for m in coupling.norms:
        yield "norm", m, channels_of(model.get_submodule(m.site))


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
