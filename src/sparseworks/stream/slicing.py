"""Smaller dense layers: units that are gone from all members of a coupling leave the tensors for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.core.site import Coupling, Member, Site
from sparseworks.stream.sites import sites as find_sites


@torch.no_grad()
def slice_units(model: nn.Module, listed: Sequence[Coupling], kept: Mapping[str, Bool[Tensor, " units"]]) -> None:
    """Cut the units that are not kept out of every member: rows with their biases, columns; in place.

    Args:
        listed: couplings of `kept`, as `couplings(model)` gives them.
        kept: name of a coupling -> which of its units stay; couplings that are not named stay whole.

    Raises:
        ModelError: a member is not a whole linear layer; nothing was changed.
        ShapeError: a mask of another length, or one that keeps nothing.
    """
    named = {s.name: s for s in find_sites(model, include=["*"])}
    chosen = [c for c in listed if c.name in kept]
    for c in chosen:
        mask = kept[c.name]
        if tuple(mask.shape) != (c.units,) or not bool(mask.any()):
            raise ShapeError(
                f"Coupling {c.name!r} has {c.units} units and must keep at least one, got a mask of {mask}."
            )
        for m in c.members:
            _linear(model, named, m.site)
    for c in chosen:
        for m in c.members:
            _cut(*_linear(model, named, m.site), m, kept[c.name])


def _linear(model: nn.Module, named: Mapping[str, Site], name: str) -> tuple[nn.Module, Site]:
    site = named.get(name)
    if site is None or site.kind not in ("linear", "hf_conv1d") or site.rows is not None or site.tied:
        raise ModelError(f"Site {name!r} is not a whole linear layer of its own, whose units could be cut out.")
    return model.get_submodule(site.module), site


def _cut(module: nn.Module, site: Site, member: Member, kept: Bool[Tensor, " units"]) -> None:
    weight = module.get_parameter("weight")
    at = kept.repeat_interleave(member.width).repeat(member.repeats).nonzero().flatten().to(weight.device)
    rows = member.axis == "rows"
    module.weight = _like(weight, weight.index_select(int(rows == site.transposed), at))
    bias = getattr(module, "bias", None)
    if rows and bias is not None:
        module.bias = _like(bias, bias.index_select(0, at))
    if site.kind == "linear":
        setattr(module, "out_features" if rows else "in_features", len(at))
    else:
        setattr(module, "nf" if rows else "nx", len(at))


def _like(old: nn.Parameter, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=old.requires_grad)
