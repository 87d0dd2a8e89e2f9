"""TrainableSparseLinear: a linear layer that is trained without its dense weight ever existing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.layers import OF_ROWS, layer_of
from sparseworks.exec.modules import SparseLinear
from sparseworks.exec.training.index import SparseIndex
from sparseworks.exec.training.module import SparseWeight, fresh
from sparseworks.exec.training.products import spmm


class TrainableSparseLinear(SparseWeight):
    """y = x W^T + b, where W has only its kept values: memory of weight, gradient and optimiser state grows with them.

    Forward and backward cost time in proportion to the kept values too. `export` gives the inference layer.
    """

    @classmethod
    def from_linear(cls, linear: nn.Module, support: Support) -> TrainableSparseLinear:
        """The kept weights of an `nn.Linear` (or Hugging Face Conv1D), which is left as it is.

        Raises:
            ModelError: `linear` is no linear layer.
            ShapeError: support and weight differ in shape.
        """
        layer = layer_of(linear, OF_ROWS)
        if tuple(layer.weight().shape) != tuple(support.shape):
            raise ShapeError(f"The weight is {tuple(layer.weight().shape)}, its support {tuple(support.shape)}.")
        index = SparseIndex.of(support)
        return cls(index, index.gather(layer.weight()), layer.bias()).train(linear.training)

    @classmethod
    def from_support(cls, support: Support, *, bias: bool = True) -> TrainableSparseLinear:
        """A new layer with random values, uniform within one over the root of the kept inputs of an output."""
        return cls(*fresh(support, bias=bias))

    @property
    def in_features(self) -> int:
        """Inputs."""
        return self.index.shape[1]

    @property
    def out_features(self) -> int:
        """Outputs."""
        return self.index.shape[0]

    def forward(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead out"]:
        """`x @ W.T + b`.

        Raises:
            ShapeError: `x` has another number of features.
        """
        y = spmm(x.reshape(-1, x.shape[-1]), self.values, self.bias, self.index)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def export(self, *, batch: int | Sequence[int] | None = None, **options: Any) -> SparseLinear:
        """The packed layer for inference, planned for `batch` rows; options as in `SparseLinear.from_linear`."""
        dense = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        dense.weight = nn.Parameter(self.dense_matrix().detach(), requires_grad=False)
        dense.bias = self.bias  # type: ignore[assignment]
        packed = SparseLinear.from_linear(dense, self.support(), batch=batch, **options)
        return packed.train(self.training)

    def extra_repr(self) -> str:
        """Shape and kept entries."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"kept={self.index.count} ({self.density:.4g})"
        )
