"""Monarch matrices: two block-diagonal factors with a reordering between and after them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.form import FORMS, Form
from sparseworks.core.method import Method
from sparseworks.core.stats import Stats
from sparseworks.weights.factors.combine import Chain
from sparseworks.weights.factors.lowrank import truncated, uniform
from sparseworks.weights.factors.parts import BlockDiagonal, Shuffle


@FORMS.register("monarch")
@dataclass(frozen=True)
class Monarch(Form):
    """W = P L P' R with R of `blocks` blocks along the inputs and L of `blocks` along the outputs.

    Seen as W[p, k, i, s] with row p * blocks + k and column i * (in / blocks) + s, every (k, i) is a matrix of rank r; the
    closest W takes each one's truncated singular value decomposition, so that the projection is exact. Numbers:
    r * blocks * (out + in), and r = words // (blocks * (out + in)). `blocks` = sqrt(n) and r = 1 is the Monarch matrix
    of the paper with 2 n^1.5 numbers, 4 blocks what its models are trained with, 1 block a matrix of low rank.

    Source: Dao et al., 2022, arXiv 2204.00595.
    """

    blocks: int = 4

    def __post_init__(self):
        if self.blocks < 1:
            raise BudgetError(f"A Monarch matrix has at least one block, got {self.blocks}.")

    def check(self, shape: tuple[int, int], method: Method, words: int) -> None:
        """Blocks must divide both sides, and rank 1 must fit."""
        self._rank(shape, words)

    def fit(self, weight: Float[Tensor, "out in"], stats: Stats, method: Method, words: int) -> Chain:
        """See `Form.fit`; plain distance, whatever the inputs."""
        del stats, method
        rank = self._rank(weight.shape, words)
        (out, width), n = weight.shape, self.blocks
        pairs = weight.double().view(out // n, n, n, width // n).permute(1, 2, 0, 3)
        left, right = truncated(pairs, rank)
        return monarch(left.to(weight.dtype), right.to(weight.dtype))

    def start(
        self, shape: tuple[int, int], method: Method, words: int, generator: torch.Generator | None = None
    ) -> Chain:
        """Both factors uniform in +-1 / sqrt(inputs of their blocks)."""
        del method
        rank, n, (out, width) = self._rank(shape, words), self.blocks, shape
        right = uniform((n, n * rank, width // n), generator)
        return _chain(uniform((n, out // n, n * rank), generator), right, rank)

    def _rank(self, shape: tuple[int, ...] | torch.Size, words: int) -> int:
        out, width = shape
        if out % self.blocks or width % self.blocks:
            raise ShapeError(f"{self.blocks} blocks do not divide a {out} x {width} matrix; choose other `blocks`.")
        least = self.blocks * (out + width)
        rank = min(words // least, out // self.blocks, width // self.blocks)
        if rank < 1:
            raise BudgetError(
                f"{words} numbers are too few for a {out} x {width} Monarch matrix of {self.blocks} blocks, which has {least}."
            )
        return int(rank)


def monarch(left: Float[Tensor, "k i p rank"], right: Float[Tensor, "k i rank s"]) -> Chain:
    """The operator with W[p, k, i, s] = sum_r left[k, i, p, r] right[k, i, r, s]."""
    k, i, p, rank = left.shape
    inner = right.transpose(0, 1).reshape(i, k * rank, -1)
    outer = left.transpose(1, 2).reshape(k, p, i * rank)
    return _chain(outer, inner, rank=rank)


def _chain(outer: Float[Tensor, "k p q"], inner: Float[Tensor, "i q s"], rank: int) -> Chain:
    k, p, _ = outer.shape
    return Chain([BlockDiagonal(inner), Shuffle((len(inner), k, rank)), BlockDiagonal(outer), Shuffle((k, p, 1))])
