"""Operators made of operators: products and weighted sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ShapeError
from sparseworks.core.operator import OPERATORS, LinearOperator, Stored, describe, rebuild


class Compound(LinearOperator):
    """What products and sums have in common: a list of operators, of which everything is counted."""

    parts: nn.ModuleList

    def _take(self, parts: Sequence[LinearOperator]) -> None:
        self.parts = nn.ModuleList(parts)

    def operators(self) -> list[LinearOperator]:
        """The parts, in order."""
        return list(self.parts)  # type: ignore[arg-type]

    @property
    def stored(self) -> Stored:
        """That of all parts; a matrix that several layers share is counted by each."""
        return sum((part.stored for part in self.operators()), Stored())

    @property
    def macs(self) -> int:
        """Those of all parts."""
        return sum(part.macs for part in self.operators())

    def metadata(self) -> dict[str, Any]:
        """The parts, described."""
        return {"parts": [describe(part) for part in self.operators()]}


@OPERATORS.register("chain")
class Chain(Compound):
    """A = A_n ... A_2 A_1: the parts in the order in which they are applied to x."""

    def __init__(self, parts: Sequence[LinearOperator]):
        for first, second in pairwise(parts):
            if first.out_features != second.in_features:
                raise ShapeError(
                    f"A factor of {first.out_features} outputs cannot be followed by one of {second.in_features} inputs."
                )
        super().__init__(parts[-1].out_features, parts[0].in_features)
        self._take(parts)

    def product(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """One part after the other."""
        for part in self.operators():
            x = part.product(x)
        return x

    def dense(self) -> Float[Tensor, "out in"]:
        """The last part times ... times the first."""
        first, *rest = self.operators()
        # Products instead of matrices: reorderings and block-diagonal factors stay as cheap as they are.
        return reduce(lambda columns, part: part.product(columns), rest, first.dense().T).T

    @classmethod
    def empty(cls, meta: Mapping[str, Any]) -> Self:
        """Of such parts."""
        return cls([rebuild(part) for part in meta["parts"]])


@OPERATORS.register("sum")
class Sum(Compound):
    """A = sum_i scale_i A_i: a sparse matrix and a correction of low rank, blocks and a correction of low rank."""

    def __init__(self, parts: Sequence[LinearOperator], scales: Sequence[float] | None = None):
        """Args: `parts` of one shape; `scales` one number each, fixed (default 1)."""
        shapes = {(p.out_features, p.in_features) for p in parts}
        scales = [1.0] * len(parts) if scales is None else list(scales)
        if len(shapes) != 1 or len(scales) != len(parts):
            raise ShapeError(f"A sum takes parts of one shape and a scale each, got {sorted(shapes)} and {scales}.")
        super().__init__(*shapes.pop())
        self._take(parts)
        self.factors = tuple(float(s) for s in scales)

    def product(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The scaled products, added."""
        return self._added([part.product(x) for part in self.operators()])

    def dense(self) -> Float[Tensor, "out in"]:
        """The scaled matrices, added."""
        return self._added([part.dense() for part in self.operators()])

    def _added(self, terms: Sequence[Tensor]) -> Tensor:
        scaled = [t if f == 1.0 else f * t for f, t in zip(self.factors, terms, strict=True)]
        return reduce(torch.add, scaled)

    def metadata(self) -> dict[str, Any]:
        """Parts and scales."""
        return {**super().metadata(), "scales": list(self.factors)}

    @classmethod
    def empty(cls, meta: Mapping[str, Any]) -> Self:
        """Of such parts."""
        return cls([rebuild(part) for part in meta["parts"]], meta["scales"])
