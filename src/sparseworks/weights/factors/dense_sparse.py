"""Dense times semi-structured sparse: blocks of rows share a small basis, every column takes few of it from every group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, PatternError, ShapeError
from sparseworks.core.form import FORMS, Form
from sparseworks.core.method import Method
from sparseworks.core.pattern import ELEMENT, Pattern
from sparseworks.core.select import select
from sparseworks.core.stats import Stats
from sparseworks.core.support import Support
from sparseworks.weights.factors.combine import Chain
from sparseworks.weights.factors.lowrank import uniform
from sparseworks.weights.factors.parts import BlockDiagonal, Sparse
from sparseworks.weights.factors.pursuit import k_svd


@FORMS.register("dense_sparse")
@dataclass(frozen=True)
class DenseSparse(Form):
    """W = diag(D_1 ... D_R) S: R blocks of `rows` rows, D_r rows x k, S (R k x in) with t of every g rows of a column kept.

    The pattern of the method is t:g along the outputs of S ("1:4@out"), so that k is a multiple of g. Words: out * k for D,
    R * k * t / g * in for the kept of S, and one bit for every entry of S. Every block is fitted to the weight by itself: a
    pursuit that takes t atoms of every group, then atoms by power iterations, `iterations` times.

    The task-aware training of the paper (STF) follows: `open_factors`, a `Sparsifier` with the same method, whose forward pass
    uses the top t of every group while gradients go straight through to all of S, `close_factors`.

    Source: Chand, Prabhu and Kumar, 2023, arXiv 2312.13211 (DSFormer). Block sizes as we chose them, the paper's are not known.
    """

    rows: int = 64
    iterations: int = 10
    power: int = 3
    selects: ClassVar[bool] = True

    def __post_init__(self):
        if self.rows < 1 or self.iterations < 0 or self.power < 1:
            raise BudgetError(f"Dense times sparse has rows >= 1, iterations >= 0 and power >= 1, got {self}.")

    def check(self, shape: tuple[int, int], method: Method, words: int) -> None:
        """Blocks must divide the rows, and one group of atoms must fit."""
        self._atoms(shape, *group_of(method.pattern), words)

    def fit(self, weight: Float[Tensor, "out in"], stats: Stats, method: Method, words: int) -> Chain:
        """See `Form.fit`; plain distance."""
        del stats
        t, g = group_of(method.pattern)
        atoms = self._atoms(weight.shape, t, g, words)
        bases, codes, masks = [], [], []
        for block in weight.float().split(self.rows):
            found = k_svd(
                block.T.contiguous(), atoms, atoms * t // g, iterations=self.iterations, power=self.power, group=g
            )
            for kept, part in zip((bases, codes, masks), found, strict=True):
                kept.append(part.T)
        sparse = Sparse.of(torch.cat(codes).to(weight.dtype), Support.from_mask(torch.cat(masks).cpu()))
        return Chain([sparse, BlockDiagonal(torch.stack(bases).to(weight.dtype))])

    def start(
        self, shape: tuple[int, int], method: Method, words: int, generator: torch.Generator | None = None
    ) -> Chain:
        """Bases and coefficients uniform in +-1 / sqrt(what they sum over), the method's pattern kept of the latter."""
        t, g = group_of(method.pattern)
        atoms, blocks = self._atoms(shape, t, g, words), shape[0] // self.rows
        codes = uniform((blocks * atoms, shape[1]), generator)
        support = select(codes.abs(), method.pattern)
        return Chain([Sparse.of(codes, support), BlockDiagonal(uniform((blocks, self.rows, atoms), generator))])

    def _atoms(self, shape: tuple[int, ...] | torch.Size, t: int, g: int, words: int) -> int:
        out, width = shape
        if out % self.rows:
            raise ShapeError(f"Blocks of {self.rows} rows do not divide a {out} x {width} matrix; choose other `rows`.")
        each = out + out // self.rows * width * (t / g + 1 / 16)
        atoms = min(int(words / each), self.rows, width) // g * g
        if atoms < g:
            raise BudgetError(
                f"{words} numbers are too few for a {out} x {width} matrix in blocks of {self.rows} rows with a basis of {g}."
            )
        return atoms


def group_of(pattern: Pattern) -> tuple[int, int]:
    """(t, g) of a t:g pattern along the outputs.

    Raises:
        PatternError: it is another pattern.
    """
    t, g = pattern.quota, pattern.group.rows
    if pattern.unit != ELEMENT or pattern.group.cols != 1 or not isinstance(t, int) or not g or pattern.inner or not t:
        raise PatternError(
            f"The sparse factor keeps t of every g coefficients of a column (1:4@out); it cannot hold {pattern}."
        )
    return t, g
