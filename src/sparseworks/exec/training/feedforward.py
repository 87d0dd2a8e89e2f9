"""TrainableSparseMLP: two trainable sparse layers and the activation between them, as one module."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.exec.native import native
from sparseworks.exec.training.linear import TrainableSparseLinear
from sparseworks.exec.training.mlp import ACTIVATIONS, mlp

_COMPILED = native() is not None


class TrainableSparseMLP(nn.Module):
    """y = down(activation(up(x))) with two trainable sparse layers, which stay modules of their own.

    float32 on the CPU runs in one compiled pass; everything else, and layers with hooks, run one after the other.

    Attributes:
        up, down: the layers; both need a bias.
        activation: "gelu", "gelu_tanh", "relu" or "silu".
    """

    def __init__(self, up: TrainableSparseLinear, activation: str, down: TrainableSparseLinear):
        """The two layers, which are taken over as they are.

        Raises:
            ShapeError: the outputs of `up` are not the inputs of `down`, or a layer has no bias.
            ModelError: an unknown activation.
        """
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ModelError(f"Activations of a sparse MLP are {', '.join(ACTIVATIONS)}; got {activation!r}.")
        if up.out_features != down.in_features:
            raise ShapeError(f"{up.out_features} hidden outputs do not fit {down.in_features} inputs.")
        if up.bias is None or down.bias is None:
            raise ShapeError("Both layers of a sparse MLP need a bias; a bias of zeros costs nothing.")
        self.up, self.down, self.activation = up, down, activation

    def forward(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead out"]:
        """`down(activation(up(x)))`.

        Raises:
            ShapeError: `x` has another number of features.
        """
        if not self._in_one_pass(x):
            return self.down(_activate(self.up(x), self.activation))
        a, b = self.up, self.down
        weights = cast("list[Tensor]", [a.values, a.bias, b.values, b.bias])
        y = mlp(x.reshape(-1, x.shape[-1]), weights, a.index, b.index, ACTIVATIONS[self.activation])
        return y.reshape(*x.shape[:-1], b.out_features)

    def _in_one_pass(self, x: Tensor) -> bool:
        layers = (self.up, self.down)
        hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in layers)
        tensors = (x, *(p for m in layers for p in m.parameters()))
        plain = all(t.dtype is torch.float32 and t.is_cpu for t in tensors) and not torch.is_autocast_enabled("cpu")
        return plain and not hooked and x.shape[-1:] == (self.up.in_features,) and _COMPILED

    def extra_repr(self) -> str:
        """The activation."""
        return f"activation={self.activation}"


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[name](x)
