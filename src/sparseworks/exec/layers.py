"""How a dense layer is read, timed and replaced: one small object per kind of layer the planner can swap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import KernelError, ModelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS
from sparseworks.exec.kernel import KERNELS
from sparseworks.exec.ladder import Rung
from sparseworks.exec.modules import SparseConv1x1, SparseLinear, is_conv1x1


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

    def example(self, rows: int) -> Tensor:
        """A random input of `rows` rows, as the module takes it."""
        return _noise(rows, self.weight())

    def wrap(self, linear: SparseLinear) -> nn.Module:
        """The module that takes the dense one's place."""
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


class PointwiseConv(Layer):
    """1x1 convolution without padding and groups."""

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """See `is_conv1x1`."""
        return is_conv1x1(module)

    def weight(self) -> Float[Tensor, "out in"]:
        """The weight without its positions."""
        return super().weight().flatten(1)

    def example(self, rows: int) -> Tensor:
        """`rows` positions of one image."""
        strides = self.module.stride  # type: ignore[union-attr]
        x = _noise(rows * strides[0], self.weight()).T  # type: ignore[operator,index]
        return x.reshape(1, -1, rows * strides[0], *[1] * (len(strides) - 1)).contiguous()  # type: ignore[operator,index,arg-type]

    def wrap(self, linear: SparseLinear) -> nn.Module:
        """The sparse convolution."""
        return SparseConv1x1(linear, stride=self.module.stride)  # type: ignore[union-attr,arg-type]


KINDS: tuple[type[Layer], ...] = (LinearLayer, TransposedLinear, PointwiseConv)


def layer_of(module: nn.Module) -> Layer:
    """The view of `module` as a swappable layer.

    Raises:
        ModelError: no kind takes it.
    """
    for kind in KINDS:
        if kind.takes(module):
            return kind(module)
    raise ModelError(f"A {type(module).__name__} is neither a linear layer nor a 1x1 convolution.")


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
    if type(module) is nn.Conv2d and not is_conv1x1(module):
        return "kernels larger than 1x1 are not planned yet; SparseConv2d.from_conv packs and times one convolution"
    if not any(kind.takes(module) for kind in KINDS):
        return f"a {type(module).__name__} has no packed counterpart"
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


def _noise(rows: int, weight: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, weight.shape[1], generator=generator).to(weight)
