"""Making a model trainable sparse: linear layers and convolutions with a support lose their dense weight."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from sparseworks.core.errors import ModelError, UnknownNameError
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.exec.training.conv import TrainableSparseConv2d
from sparseworks.exec.training.linear import TrainableSparseLinear
from sparseworks.exec.units import unit_of
from sparseworks.stream import sites


def trainable(model: nn.Module, supports: Mapping[str, Support]) -> nn.Module:
    """A copy of `model` in which every site of `supports` holds and trains its kept weights only.

    Weights, gradients and optimiser states of these layers then take memory in proportion to what is kept, and so does time.
    Make the optimiser afterwards: the parameters are new.

    Args:
        model: any module, left as it is.
        supports: site name (see `sparseworks.sites`) -> kept entries. Slices of a fused layer (q, k, v) without one are kept
            whole.

    Raises:
        UnknownNameError: a support names no site.
        ShapeError: a support has another shape than its site.
        ModelError: a site is not a layer of its own, is tied, or is a convolution with groups.
    """
    known = {site.name: site for site in sites(model, include=["*"])} if supports else {}
    members: dict[str, list[Site]] = {}
    for name in supports:
        if name not in known:
            raise UnknownNameError("site", name, known)
        site = known[name]
        if site.expert is not None or site.parameter != f"{site.module}.weight" or site.tied:
            raise ModelError(
                f"Site {name!r} is not the weight of a layer of its own (an expert, or tied); leave it dense."
            )
        members.setdefault(site.module, []).append(site)
    names = {module: unit_of(model, module, found).support(supports) for module, found in members.items()}
    made = {module: _layer(model.get_submodule(module), support) for module, support in names.items()}
    shared = {id(w): w for module in names if (w := model.get_submodule(module).weight) is not None}
    twin = copy.deepcopy(model, memo=dict(shared))  # dense weights that go away are not copied first
    for module, layer in made.items():
        parent, _, child = module.rpartition(".")
        setattr(twin.get_submodule(parent), child, layer)
    return twin


def _layer(module: nn.Module, support: Support) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        return TrainableSparseConv2d.from_conv(module, support)
    return TrainableSparseLinear.from_linear(module, support)
