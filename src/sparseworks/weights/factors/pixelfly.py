"""Pixelfly: a flat block butterfly and a matrix of low rank, weighted by one learned number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.butterfly import flat_butterfly, largest_power
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.form import FORMS, Form
from sparseworks.core.method import Method
from sparseworks.core.operator import OPERATORS, LinearOperator, Stored, rebuild
from sparseworks.core.stats import Stats
from sparseworks.core.support import Support
from sparseworks.weights.factors.blocksparse import BlockSparse, fresh_blocks
from sparseworks.weights.factors.combine import Chain, Compound
from sparseworks.weights.factors.lowrank import low_rank, truncated, uniform
from sparseworks.weights.factors.parts import Matrix


@OPERATORS.register("blend")
class Blend(Compound):
    """A = g A_1 + (1 - g) A_2 with one number g that is trained."""

    def __init__(self, parts: list[LinearOperator], share: float = 0.5):
        """Args: two `parts` of one shape; `share` is where g begins."""
        sizes = {(p.out_features, p.in_features) for p in parts}
        if len(parts) != 2 or len(sizes) != 1:
            raise ShapeError(f"A blend takes two parts of one shape, got {len(parts)} of {sorted(sizes)}.")
        super().__init__(*sizes.pop())
        self._take(parts)
        self.share = nn.Parameter(torch.tensor(float(share)))

    def product(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Both products, blended."""
        first, second = (part.product(x) for part in self.operators())
        return torch.lerp(second, first, self.share.to(first.dtype))

    def dense(self) -> Float[Tensor, "out in"]:
        """Both matrices, blended."""
        first, second = (part.dense() for part in self.operators())
        return torch.lerp(second, first, self.share.to(first.dtype))

    @property
    def stored(self) -> Stored:
        """Both parts, and g."""
        return super().stored + Stored(1)

    @classmethod
    def empty(cls, meta: Mapping[str, Any]) -> Self:
        """Of such parts."""
        return cls([rebuild(part) for part in meta["parts"]])


@FORMS.register("pixelfly")
@dataclass(frozen=True)
class Pixelfly(Form):
    """W = g B + (1 - g) U V: B on the blocks of `flat_butterfly`, fixed from the first step, U V of low rank, g begins at 1/2.

    Of the words the share `low_rank` is set aside for U V; B takes the densest butterfly (size, factors) that the others
    hold, the finer one of two that are as dense, and the rank follows from what B leaves. Fits alternate the best U V and B
    of what the other leaves.

    Source: Chen, Dao et al., 2021, arXiv 2112.00029 (a quarter to a third for the low rank; blocks of 32).

    Attributes:
        block: side of a block; halved until it divides both sides and leaves at least 8 blocks on each.
        low_rank: share of the words for U V.
        sweeps: alternations of a fit.
    """

    block: int = 32
    low_rank: float = 0.25
    sweeps: int = 10

    def __post_init__(self):
        if self.block < 1 or self.block & (self.block - 1):
            raise BudgetError(f"The side of a block is a power of two, got {self.block}.")
        if not 0.0 <= self.low_rank < 1.0:
            raise BudgetError(f"`low_rank` is a share in [0, 1), got {self.low_rank}.")

    def start(
        self, shape: tuple[int, int], method: Method, words: int, generator: torch.Generator | None = None
    ) -> Blend:
        """B scaled for its kept columns, both factors of U V uniform in +-1 / sqrt(inputs)."""
        del method
        grid, block, rank = self.sizes(shape, words)
        factors = Chain([Matrix(uniform((rank, shape[1]), generator)), Matrix(uniform((shape[0], rank), generator))])
        return Blend([fresh_blocks(grid, block, generator), factors])

    def fit(self, weight: Float[Tensor, "out in"], stats: Stats, method: Method, words: int) -> Blend:
        """See `Form.fit`; plain distance, whatever the inputs."""
        del stats, method
        grid, _, rank = self.sizes((weight.shape[0], weight.shape[1]), words)
        kept = grid.mask().to(weight.device)
        kept = kept.repeat_interleave(weight.shape[0] // len(kept), 0)
        kept = kept.repeat_interleave(weight.shape[1] // kept.shape[1], 1)
        target = 2 * weight.double()
        blocks = target * kept
        for _ in range(self.sweeps):
            left, right = truncated(target - blocks, rank)
            blocks = (target - left @ right) * kept
        return Blend(
            [
                BlockSparse.of(blocks.to(weight.dtype), grid),
                low_rank(left.contiguous(), right.contiguous(), weight.dtype),
            ]
        )

    def sizes(self, shape: tuple[int, int], words: int) -> tuple[Support, int, int]:
        """Kept blocks, side of a block, and rank.

        Raises:
            BudgetError: the diagonal of blocks and rank 1 need more words.
        """
        out, width = shape
        block = self.block
        while block > 1 and (out % block or width % block or min(out, width) // block < 8):
            block //= 2
        rows, cols = out // block, width // block
        room = words - 1 - max(self.low_rank * words, out + width)
        fitting = [
            (grid.count, size, grid)
            for size in _powers(largest_power(min(rows, cols)))
            for factors in range(size.bit_length())
            if (grid := flat_butterfly(rows, cols, factors, size=size)).count * block**2 + grid.size / 16 <= room
        ]
        if not fitting:
            raise BudgetError(
                f"{words} words are too few for a {out} x {width} matrix as a butterfly of {block} x {block} blocks and rank 1."
            )
        count, _, grid = max(fitting, key=lambda found: found[:2])
        left = words - 1 - count * block**2 - grid.size / 16
        return grid, block, min(int(left // (out + width)), out, width)


def _powers(most: int) -> list[int]:
    """2, 4, ... most; 1 is no butterfly."""
    return [1 << e for e in range(1, most.bit_length())]
