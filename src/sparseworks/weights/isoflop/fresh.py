"""New layers of the kind and place of an old one: with the same inputs, or with the same outputs."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd


def spread(layer: nn.Module, width: int) -> nn.Module:
    """From the inputs of `layer` to `width` features, through the same window; without a bias."""
    if isinstance(layer, _ConvNd):
        window = {k: getattr(layer, k) for k in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        return type(layer)(layer.in_channels, width, bias=False, **window, **_where(layer))  # type: ignore[call-arg]
    return nn.Linear(sizes(layer)[1], width, bias=False, **_where(layer))


def collect(layer: nn.Module, width: int) -> nn.Module:
    """From `width` features at every position of the output to the outputs of `layer`, with a bias if that has one."""
    bias = getattr(layer, "bias", None) is not None
    if isinstance(layer, _ConvNd):
        return type(layer)(width, layer.out_channels, kernel_size=1, bias=bias, **_where(layer))  # type: ignore[call-arg,arg-type]
    return nn.Linear(width, sizes(layer)[0], bias=bias, **_where(layer))


def norm(layer: nn.Module, width: int) -> nn.Module:
    """Over `width` features of what `layer` gives: by batch for maps, by token for rows."""
    if isinstance(layer, _ConvNd):
        made = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
        return made(width, **_where(layer))
    return nn.LayerNorm(width, **_where(layer))


def sizes(layer: nn.Module) -> tuple[int, int]:
    """Outputs, and inputs times positions of the window: the sides of its weight as a matrix."""
    weight = layer.get_parameter("weight")
    if type(layer).__name__ == "Conv1D":  # Hugging Face stores (in, out)
        return weight.shape[1], weight.shape[0]
    return weight.shape[0], weight[0].numel()


def _where(layer: nn.Module) -> dict[str, Any]:
    weight = layer.get_parameter("weight")
    return {"device": weight.device, "dtype": weight.dtype}
