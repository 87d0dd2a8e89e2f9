"""How a dense layer is read, timed and replaced: one small object per kind of layer the planner can swap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import KernelError, ModelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.conv import SparseConv2d
from sparseworks.exec.format import FORMATS
from sparseworks.exec.kernel import KERNELS, Call, Maps
from sparseworks.exec.ladder import Rung
from sparseworks.exec.modules import SparseLinear
from sparseworks.exec.pointwise import SparseConv1x1, is_conv1x1
from sparseworks.exec.window import Window


class Layer(ABC):
    """A dense layer whose weight can be read as an `(out, in)` matrix."""

    def __init__(self, module: nn.Module):
        self.module = module

    @staticmethod
    @abstractmethod
    def takes(module: nn.Module) -> bool:
        """Whether this kind describes `module`."""

    def weight(self) -> Float[Tensor, "out in"]:
        """The dense weight, detached."""
        return self.module.weight.detach()  # type: ignore[union-attr,return-value]

    def bias(self) -> Tensor | None:
        """The bias, or None."""
        return getattr(self.module, "bias", None)

    def call(self, support: Support, rows: int, seen: Sequence[int] | None) -> Call | None:
        """What a kernel is asked to do for an input of shape `seen`, or of `rows` rows where no input was seen.

        None where the input must have been seen.
        """
        weight = self.weight()
        out, width = weight.shape
        rows, maps = (rows, None) if seen is None else self.sizes(seen)
        threads, device = torch.get_num_threads(), weight.device.type
        return Call(rows, (out, width), support.density, weight.dtype, threads, device, maps)

    def sizes(self, seen: Sequence[int]) -> tuple[int, Maps | None]:
        """Rows of the product for an input of this shape, and its maps."""
        return prod(seen[:-1]), None

    def example(self, call: Call) -> Tensor:
        """A random input for `call`, as the module takes it."""
        return _noise(self.weight(), call.rows, self.weight().shape[1])

    def build(self, support: Support, rungs: Sequence[tuple[int, str]]) -> nn.Module:
        """The module that takes the dense one's place, with all that the `(least, kernel)` rungs read."""
        return self.wrap(pack_for(self, support, rungs))

    def wrap(self, linear: SparseLinear) -> nn.Module:
        """The module around a product of rows."""
        return linear


class LinearLayer(Layer):
    """nn.Linear."""

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """A plain nn.Linear (subclasses may be read past their forward, as nn.MultiheadAttention does)."""
        return type(module) is nn.Linear


class TransposedLinear(Layer):
    """Hugging Face Conv1D: weight stored (in, out). Known by name, so that transformers is not imported."""

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """A class called Conv1D with the attribute `nf`."""
        return type(module).__name__ == "Conv1D" and hasattr(module, "nf")

    def weight(self) -> Float[Tensor, "out in"]:
        """The weight, transposed to (out, in)."""
        return super().weight().T


class Convolution(Layer):
    """nn.Conv2d of any kernel, without groups."""

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """See `Window.of`."""
        try:
            Window.of(module)
        except ModelError:
            return False
        return True

    def weight(self) -> Float[Tensor, "out taps*in"]:
        """The matrix of the site, channels last."""
        return super().weight().movedim(1, -1).flatten(1)

    def call(self, support: Support, rows: int, seen: Sequence[int] | None) -> Call | None:
        """None where no input was seen: from rows alone the size of the maps is not known."""
        return None if seen is None else super().call(support, rows, seen)

    def sizes(self, seen: Sequence[int]) -> tuple[int, Maps | None]:
        """Positions of the output maps, and the maps."""
        maps = Maps(prod(seen[:-3]), (seen[-2], seen[-1]), Window.of(self.module))
        return maps.positions, maps

    def example(self, call: Call) -> Tensor:
        """Random maps."""
        assert call.maps is not None
        return _noise(self.weight(), call.maps.images, self.module.in_channels, *call.maps.size)  # type: ignore[arg-type]

    def build(self, support: Support, rungs: Sequence[tuple[int, str]]) -> nn.Module:
        """The sparse convolution."""
        return SparseConv2d.from_conv(self.module, support, rungs=rungs)


class PointwiseConv(Layer):
    """1x1 convolution without padding and groups: its positions are rows, and in two dimensions it is a `Convolution` too."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.as_maps = Convolution(module) if Convolution.takes(module) else None

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """See `is_conv1x1`."""
        return is_conv1x1(module)

    def weight(self) -> Float[Tensor, "out in"]:
        """The weight without its positions."""
        return super().weight().flatten(1)

    def sizes(self, seen: Sequence[int]) -> tuple[int, Maps | None]:
        """Positions of the output, and the maps where there are two dimensions."""
        if self.as_maps is not None:
            return self.as_maps.sizes(seen)
        stride = self.module.stride[0]  # type: ignore[index]
        return prod(seen[:-2]) * ceil(seen[-1] / stride), None  # type: ignore[operator]

    def example(self, call: Call) -> Tensor:
        """Random maps, or `rows` positions of one image."""
        if call.maps is not None and self.as_maps is not None:
            return self.as_maps.example(call)
        strides: Any = self.module.stride
        shape = 1, self.weight().shape[1], call.rows * strides[0], *[1] * (len(strides) - 1)
        return _noise(self.weight(), *shape)

    def build(self, support: Support, rungs: Sequence[tuple[int, str]]) -> nn.Module:
        """A sparse convolution on maps, or one on rows."""
        if self.as_maps is not None and any(KERNELS.get(name).of_maps for _, name in rungs):
            return self.as_maps.build(support, rungs)
        return super().build(support, rungs)

    def wrap(self, linear: SparseLinear) -> nn.Module:
        """The sparse convolution on rows."""
        return SparseConv1x1(linear, stride=self.module.stride)  # type: ignore[arg-type]


OF_ROWS: tuple[type[Layer], ...] = (LinearLayer, TransposedLinear, PointwiseConv)
KINDS = (*OF_ROWS, Convolution)


def layer_of(module: nn.Module, kinds: Sequence[type[Layer]] = KINDS) -> Layer:
    """The view of `module` as a swappable layer of one of `kinds`.

    Raises:
        ModelError: no kind takes it.
    """
    for kind in kinds:
        if kind.takes(module):
            return kind(module)
    larger = "convolution without groups" if Convolution in kinds else "1x1 convolution"
    raise ModelError(f"A {type(module).__name__} is neither a linear layer nor a {larger}.")


def pack_for(layer: Layer, support: Support, rungs: Sequence[tuple[int, str]]) -> SparseLinear:
    """Pack the layer's weight once per form that the `(min_rows, kernel)` rungs need, onto the device of the weight.

    Raises:
        ShapeError: support and weight differ in shape.
        KernelError: a format refuses the support.
    """
    weight, bias = layer.weight(), layer.bias()
    if tuple(weight.shape) != tuple(support.shape):
        raise ShapeError(f"The weight is {tuple(weight.shape)}, its support {tuple(support.shape)}.")
    forms = {}
    for _, name in rungs:
        kernel = KERNELS.get(name)
        key = (kernel.format, kernel.value_dtype)
        if key not in forms:
            format = FORMATS.get(kernel.format)
            refusal = format.refuses(support, kernel.value_dtype)
            if refusal:
                raise KernelError(f"Format {kernel.format!r} refuses this support: {refusal}.")
            forms[key] = format.pack(weight, support, dtype=kernel.value_dtype)
    ladder = [
        Rung(least, name, forms[KERNELS.get(name).format, KERNELS.get(name).value_dtype]) for least, name in rungs
    ]
    sparse = SparseLinear(ladder, bias, density=support.density)
    return sparse.to(weight.device).train(layer.module.training)


def why_not(model: nn.Module, name: str) -> str | None:
    """A sentence saying why the module called `name` cannot be replaced, or None."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return "it is not a module of its own (a slice of a fused matrix, or an expert)"
    weight = getattr(module, "weight", None)
    if not any(kind.takes(module) for kind in KINDS):
        kind = "Conv2d with groups or such padding" if type(module) is nn.Conv2d else type(module).__name__
        return f"a {kind} has no packed counterpart"
    if not isinstance(weight, nn.Parameter):
        return "its weight is computed anew at each call (a parametrisation)"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it carries forward hooks, which would be lost"
    owners = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
    if len(owners) > 1:
        return f"its weight is tied to {next(n for n in owners if n != f'{name}.weight')}"
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.TransformerEncoderLayer | nn.MultiheadAttention):
        return f"{type(parent).__name__} reads the weight past the layer"
    return None


def _noise(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(like)
