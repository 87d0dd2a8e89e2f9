"""Making a model trainable sparse: linear layers and convolutions with a support lose their dense weight."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from sparseworks.core.errors import ModelError, ShapeError, UnknownNameError
from sparseworks.core.support import Support
from sparseworks.exec.training.conv import TrainableSparseConv2d
from sparseworks.exec.training.linear import TrainableSparseLinear
from sparseworks.stream import sites


def trainable(model: nn.Module, supports: Mapping[str, Support]) -> nn.Module:
    """A copy of `model` in which every site of `supports` holds and trains its kept weights only.

    Weights, gradients and optimiser states of these layers then take memory in proportion to what is kept, and so does time.
    Make the optimiser afterwards: the parameters are new.

    Args:
        model: any module, left as it is.
        supports: site name (see `sparseworks.sites`) -> kept entries; each site must be a whole linear layer or convolution.

    Raises:
        UnknownNameError: a support names no site.
        ShapeError: a support has another shape than its site.
        ModelError: a site is not a layer of its own, is tied, or is a convolution with groups.
    """
    known = {site.name: site for site in sites(model, include=["*"])} if supports else {}
    names = {}
    for name, support in supports.items():
        if name not in known:
            raise UnknownNameError("site", name, known)
        site = known[name]
        if tuple(support.shape) != site.shape:
            raise ShapeError(f"Site {name!r} is {site.shape}, its support {tuple(support.shape)}.")
        if site.rows is not None or site.parameter != f"{site.module}.weight" or site.tied:
            raise ModelError(
                f"Site {name!r} is not a whole layer of its own (a slice, an expert, or tied); leave it dense."
            )
        names[site.module] = support
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
