"""The factors that operators are made of: a full matrix, a block-diagonal one, a sparse one, and a change of order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import ShapeError
from sparseworks.core.operator import OPERATORS, LinearOperator, Stored
from sparseworks.core.support import Support


@OPERATORS.register("matrix")
class Matrix(LinearOperator):
    """A itself, all of it: the dense factor of a product."""

    def __init__(self, matrix: Float[Tensor, "out in"]):
        super().__init__(*matrix.shape)
        self.matrix = nn.Parameter(matrix.contiguous())  # as files give it back: other strides round otherwise

    def product(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """x A^T."""
        return F.linear(x, self.matrix)

    def dense(self) -> Float[Tensor, "out in"]:
        """The parameter."""
        return self.matrix

    @property
    def stored(self) -> Stored:
        """out * in numbers."""
        return Stored(self.matrix.numel())

    @property
    def macs(self) -> int:
        """out * in."""
        return self.matrix.numel()

    def metadata(self) -> dict[str, Any]:
        """Its shape."""
        return {"shape": list(self.matrix.shape)}

    @classmethod
    def empty(cls, meta: Mapping[str, Any]) -> Self:
        """Of that shape."""
        return cls(torch.empty(*meta["shape"]))


@OPERATORS.register("block_diagonal")
class BlockDiagonal(LinearOperator):
    """diag(B_1 ... B_n), B_i of p x s: n batched products, n * p * s numbers instead of (n * p) * (n * s)."""

    def __init__(self, blocks: Float[Tensor, "n p s"]):
        n, p, s = blocks.shape
        super().__init__(n * p, n * s)
        self.blocks = nn.Parameter(blocks.contiguous())

    def product(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """One batched product: slice i of the input with block i."""
        n, p, s = self.blocks.shape
        parts = x.reshape(-1, n, s).transpose(0, 1)
        y = torch.bmm(parts, self.blocks.mT).transpose(0, 1)
        return y.reshape(*x.shape[:-1], n * p)

    def dense(self) -> Float[Tensor, "out in"]:
        """The blocks on the diagonal of a matrix of zeros."""
        return torch.block_diag(*self.blocks)

    @property
    def stored(self) -> Stored:
        """n * p * s numbers."""
        return Stored(self.blocks.numel())

    @property
    def macs(self) -> int:
        """n * p * s."""
        return self.blocks.numel()

    def metadata(self) -> dict[str, Any]:
        """Number and shape of the blocks."""
        return {"shape": list(self.blocks.shape)}

    @classmethod
    def empty(cls, meta: Mapping[str, Any]) -> Self:
        """Of that shape."""
        return cls(torch.empty(*meta["shape"]))


@OPERATORS.register("sparse")
class Sparse(LinearOperator):
    """A matrix that is zero outside a fixed support: kept values in row order, and one bit an entry for where they lie.

    Gradients reach the values only; the support never changes here (see `shadow` for training it).
    """

    bits: Tensor

    def __init__(self, values: Float[Tensor, " kept"], support: Support):
        super().__init__(*support.shape)
        if values.shape != (support.count,):
            raise ShapeError(f"A support of {support.count} entries cannot take {tuple(values.shape)} values.")
        self.values = nn.Parameter(values)
        self.register_buffer("bits", support.bits().to(values.device))
        self._known: tuple[Tensor, int, Tensor] | None = None

    @classmethod
    def of(cls, matrix: Float[Tensor, "out in"], support: Support) -> Self:
        """The entries of `matrix` on `support`."""
        return cls(matrix[support.mask().to(matrix.device)], support)

    @property
    def support(self) -> Support:
        """What is kept."""
        return Support.from_bits(self.bits, (self.out_features, self.in_features))

    def _places(self) -> Tensor:
        """Flat indices of the kept entries; found again whenever the bits are other ones."""
        if self._known is None or self._known[0] is not self.bits or self._known[1] != self.bits._version:
            flat = self.support.mask().flatten().nonzero().flatten().to(self.bits.device)
            self._known = self.bits, self.bits._version, flat
        return self._known[2]

    def product(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """x A^T with A written out for the moment of the product."""
        return F.linear(x, self.dense())

    def dense(self) -> Float[Tensor, "out in"]:
        """The values put at their places."""
        flat = self.values.new_zeros(self.out_features * self.in_features)
        return flat.index_put((self._places(),), self.values).view(self.out_features, self.in_features)

    @property
    def stored(self) -> Stored:
        """The kept values, and one bit for every entry."""
        return Stored(self.values.numel(), self.out_features * self.in_features)

    @property
    def macs(self) -> int:
        """One multiplication a kept value."""
        return self.values.numel()

    def metadata(self) -> dict[str, Any]:
        """Shape and number of kept values."""
        return {"shape": [self.out_features, self.in_features], "kept": self.values.numel()}

    @classmethod
    def empty(cls, meta: Mapping[str, Any]) -> Self:
        """Of that shape, with as many values at the first places."""
        rows, cols = meta["shape"]
        first = torch.arange(rows * cols).view(rows, cols) < int(meta["kept"])
        return cls(torch.empty(int(meta["kept"])), Support.from_mask(first))


@OPERATORS.register("shuffle")
class Shuffle(LinearOperator):
    """y[j, i, :] = x[i, j, :] for vectors seen as a x b x c: the fixed reordering between block-diagonal factors."""

    def __init__(self, sizes: Sequence[int]):
        a, b, c = map(int, sizes)
        super().__init__(a * b * c, a * b * c)
        self.sizes = a, b, c

    def product(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """A transposed view."""
        return x.reshape(*x.shape[:-1], *self.sizes).transpose(-3, -2).reshape(x.shape)

    def dense(self) -> Float[Tensor, "out in"]:
        """A permutation matrix."""
        return self.product(torch.eye(self.in_features)).T

    @property
    def stored(self) -> Stored:
        """Nothing."""
        return Stored()

    @property
    def macs(self) -> int:
        """None."""
        return 0

    def metadata(self) -> dict[str, Any]:
        """a, b, c."""
        return {"sizes": list(self.sizes)}

    @classmethod
    def empty(cls, meta: Mapping[str, Any]) -> Self:
        """Of those sizes."""
        return cls(meta["sizes"])
