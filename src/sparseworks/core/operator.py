"""LinearOperator: a matrix that is never stored as such, with its product, its dense form, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ShapeError
from sparseworks.core.registry import Registry

OPERATORS: Registry[type[LinearOperator]] = Registry("operator", "sparseworks.weights")


@dataclass(frozen=True)
class Stored:
    """What a matrix needs: numbers (as wide as the layer's type), and bits that say where they belong."""

    numbers: int = 0
    bits: int = 0

    def __add__(self, other: Stored) -> Stored:
        return Stored(self.numbers + other.numbers, self.bits + other.bits)

    def total_bits(self, width: int = 16) -> int:
        """numbers * width + bits."""
        return self.numbers * width + self.bits

    def words(self, width: int = 16) -> float:
        """All of it in numbers of `width` bits: comparable with out * in, what the dense matrix stores."""
        return self.numbers + self.bits / width


class LinearOperator(nn.Module):
    """y = x A^T + b for a matrix A (out x in) given by its factors; takes the place of an `nn.Linear`.

    A subclass defines `product`, `dense`, `stored`, `macs`, `metadata` and `empty`. All its state are parameters and
    persistent buffers, so that `state_dict`, `deepcopy`, `to` and saving need no special case.

    Attributes:
        in_features, out_features: as in `nn.Linear`.
        bias: (out,), or None; the factors of a factorised layer have none.
    """

    registered_name: ClassVar[str]
    bias: nn.Parameter | None

    def __init__(self, out_features: int, in_features: int):
        super().__init__()
        self.out_features, self.in_features = int(out_features), int(in_features)
        self.register_parameter("bias", None)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """x A^T + b.

        Raises:
            ShapeError: `x` has another width.
        """
        if x.shape[-1] != self.in_features:
            raise ShapeError(f"An operator of {self.in_features} inputs cannot take an input of {tuple(x.shape)}.")
        y = self.product(x)
        return y if self.bias is None else y + self.bias

    def product(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """x A^T."""
        raise NotImplementedError

    def dense(self) -> Float[Tensor, "out in"]:
        """A; differentiable in the factors."""
        raise NotImplementedError

    @property
    def stored(self) -> Stored:
        """What A needs, the bias not counted."""
        raise NotImplementedError

    @property
    def macs(self) -> int:
        """Multiplications of one row of x."""
        raise NotImplementedError

    def flops(self, rows: int) -> int:
        """2 * rows * macs: multiplications and additions of a product with `rows` rows."""
        return 2 * rows * self.macs

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """A: what code that reads `layer.weight` instead of calling the layer gets."""
        return self.dense()

    def metadata(self) -> dict[str, Any]:
        """Plain data from which `empty` builds an operator with the same state, values aside."""
        raise NotImplementedError

    @classmethod
    def empty(cls, meta: Mapping[str, Any]) -> Self:
        """An operator without values, to be filled with a `state_dict`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Sizes, and the share of the dense matrix that is stored (16-bit numbers)."""
        share = self.stored.words() / max(self.out_features * self.in_features, 1)
        return f"{self.in_features} -> {self.out_features}, stored {share:.3g}"


def describe(operator: LinearOperator) -> dict[str, Any]:
    """The operator as plain data: registered name, metadata, and whether there is a bias."""
    return {"operator": operator.registered_name, "bias": operator.bias is not None, **operator.metadata()}


def rebuild(meta: Mapping[str, Any]) -> LinearOperator:
    """The empty operator that `describe` described.

    Raises:
        UnknownNameError: of a kind that this version does not have.
    """
    made = OPERATORS.get(meta["operator"]).empty(meta)
    if meta["bias"]:
        made.bias = nn.Parameter(torch.empty(made.out_features))
    return made
