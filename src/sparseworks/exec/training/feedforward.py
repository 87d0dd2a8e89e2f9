"""TrainableSparseMLP: two trainable sparse layers and the activation between them, as one module."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.exec.native import native
from sparseworks.exec.training.linear import TrainableSparseLinear
from sparseworks.exec.training.mlp import ACTIVATIONS, mlp
from sparseworks.exec.training.onepass import norm_of, runs_in_one_pass

_COMPILED = native() is not None


class TrainableSparseMLP(nn.Module):
    """y = down(activation(up(x))) with two trainable sparse layers, which stay modules of their own.

    With a norm and a residual it is the second half of a pre-norm transformer block, y = x + down(activation(up(norm(x)))).
    float32 on the CPU runs in one compiled pass; everything else, and parts with hooks, run one after the other.

    Attributes:
        up, down: the layers; both need a bias.
        activation: "gelu", "gelu_tanh", "relu" or "silu".
        norm: LayerNorm of the input, or None.
        residual: whether the input is added to the output.
    """

    def __init__(
        self,
        up: TrainableSparseLinear,
        activation: str,
        down: TrainableSparseLinear,
        *,
        norm: nn.LayerNorm | None = None,
        residual: bool = False,
    ):
        """The parts, which are taken over as they are.

        Raises:
            ShapeError: the outputs of `up` are not the inputs of `down`, a layer has no bias, a norm over other features, or a
                residual of another size than the output.
            ModelError: an unknown activation, or a norm without weight or bias.
        """
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ModelError(f"Activations of a sparse MLP are {', '.join(ACTIVATIONS)}; got {activation!r}.")
        if up.out_features != down.in_features:
            raise ShapeError(f"{up.out_features} hidden outputs do not fit {down.in_features} inputs.")
        if up.bias is None or down.bias is None:
            raise ShapeError("Both layers of a sparse MLP need a bias; a bias of zeros costs nothing.")
        if residual and up.in_features != down.out_features:
            raise ShapeError(f"A residual of {up.in_features} features cannot be added to {down.out_features} outputs.")
        if norm is not None:
            norm_of(norm, up.in_features)
        self.norm, self.up, self.down = norm, up, down
        self.activation, self.residual = activation, residual

    def forward(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead out"]:
        """`down(activation(up(norm(x))))`, plus `x` if there is a residual.

        Raises:
            ShapeError: `x` has another number of features.
        """
        if not _COMPILED or not runs_in_one_pass(self, x, self.up.in_features):
            y = x if self.norm is None else self.norm(x)
            y = self.down(_activate(self.up(y), self.activation))
            return x + y if self.residual else y
        a, b = self.up, self.down
        weights = cast("list[Tensor]", [a.values, a.bias, b.values, b.bias])
        norm = None if self.norm is None else norm_of(self.norm, a.in_features)
        flat, kind = x.reshape(-1, x.shape[-1]), ACTIVATIONS[self.activation]
        y = mlp(flat, weights, a.index, b.index, kind, norm, residual=self.residual)
        return y.reshape(*x.shape[:-1], b.out_features)

    def extra_repr(self) -> str:
        """The activation."""
        return f"activation={self.activation}, residual={self.residual}"


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[name](x)
