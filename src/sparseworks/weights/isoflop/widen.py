"""Wider inner layers: more units of every coupling, with new random weights. The counterpart of `stream.slicing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from sparseworks.core.errors import ModelError
from sparseworks.core.site import Coupling, Site


def widen_units(model: nn.Module, listed: Sequence[Coupling], sites: Mapping[str, Site], factor: float) -> set[str]:
    """Give every coupling round(factor units) units, in place; its members, and what normalises between them, start anew.

    Returns:
        Names of the sites that changed.

    Raises:
        ModelError: a member is not a whole linear layer or convolution, or there is a part between them that cannot grow.
    """
    shapes: dict[str, list[int]] = {}
    for c in listed:
        units = round(factor * c.units)
        for m in c.members:
            shape = shapes.setdefault(m.site, list(_ends(model, sites[m.site])))
            shape[int(m.axis == "cols")] = units * m.width
        for name in _between(model, sites[c.members[0].site].module, sites[c.members[-1].site].module):
            _grow_norm(model, name, c.units, units)
    for name, (out, width) in shapes.items():
        _put(model, sites[name].module, _like(model.get_submodule(sites[name].module), out, width))
    return set(shapes)


def _ends(model: nn.Module, site: Site) -> tuple[int, int]:
    """Output and input features (channels) of the layer."""
    layer = model.get_submodule(site.module)
    if site.rows is None and site.expert is None and not site.tied and site.groups == 1:
        if isinstance(layer, _ConvNd):
            return layer.out_channels, layer.in_channels
        if site.kind in ("linear", "hf_conv1d"):
            return site.shape
    raise ModelError(
        f"Site {site.name!r} cannot be widened: it is not a whole linear layer, or convolution without groups, of its own. "
        "Name it in `skip`."
    )


def _like(layer: nn.Module, out: int, width: int) -> nn.Module:
    """A fresh layer of the same class and window with these features."""
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None) is not None
    place = {"device": weight.device, "dtype": weight.dtype}
    if isinstance(layer, _ConvNd):
        window = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        made = type(layer)(width, out, bias=bias, **window, **place)  # type: ignore[call-arg]
    elif isinstance(layer, nn.Linear):
        made = nn.Linear(width, out, bias=bias, **place)
    else:
        made = type(layer)(out, width).to(**place)  # Hugging Face Conv1D
    return made.train(layer.training)


def _between(model: nn.Module, first: str, last: str) -> list[str]:
    """Leaves with parameters registered after the first layer and before the last."""
    leaves = [n for n, m in model.named_modules() if not any(True for _ in m.children())]
    inner = leaves[leaves.index(first) + 1 : leaves.index(last)]
    return [n for n in inner if any(True for _ in model.get_submodule(n).parameters())]


def _grow_norm(model: nn.Module, name: str, units: int, wanted: int) -> None:
    old = model.get_submodule(name)
    weight = next(old.parameters())
    place = {"device": weight.device, "dtype": weight.dtype}
    if isinstance(old, _BatchNorm) and old.num_features == units:
        made: nn.Module = type(old)(wanted, old.eps, old.momentum, old.affine, old.track_running_stats, **place)
    elif isinstance(old, nn.PReLU) and old.num_parameters == units:
        made = nn.PReLU(wanted, float(weight.detach().flatten()[0]), **place)
    else:
        return  # it belongs to another path, as the layers of a shortcut and the other makers of a gated layer do
    _put(model, name, made.train(old.training))


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
