"""A sparse core between block-diagonal wrappers, fitted in one shot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, PatternError, ShapeError
from sparseworks.core.form import FORMS, Form
from sparseworks.core.method import Method
from sparseworks.core.pattern import ELEMENT, Pattern
from sparseworks.core.select import select
from sparseworks.core.stats import InputMoments, Stat, Stats
from sparseworks.core.support import Support
from sparseworks.weights.factors.combine import Chain
from sparseworks.weights.factors.parts import BlockDiagonal, Sparse


@FORMS.register("wrapped")
@dataclass(frozen=True)
class Wrapped(Form):
    """W ~ A S B with S on the method's N:M pattern, A and B block-diagonal of `block` x `block`.

    W' = W with unit columns, then unit rows (scales kept). From A = B = I and S = W' on the support of the method's score of
    W', minimise f = sum_ij (W' - A S B)_ij^2 h_j, h_j = E[x_j^2], by turns: every `every` steps A, then B, exactly by
    least squares; in each step, in every pair of a block of A and one of B, one group of S drawn in proportion to the
    L1 norm of its gradient gets the best of all its supports with the best values on it. `steps` in all, fewer once
    `patience` steps lower f by less than `tolerance` of itself. At the end the scales go into A and B.

    Source: Liu et al., 2025, arXiv 2510.05528 (ARMOR; block 32, 3000 steps and patience 100 as released). Departure: A, B and
    values by least squares instead of Adam with 1e-4, so that f never rises.
    """

    block: int = 32
    steps: int = 3000
    every: int = 10
    patience: int = 100
    tolerance: float = 1e-3
    seed: int = 0
    needs: ClassVar[frozenset[type[Stat]]] = frozenset({InputMoments})
    selects: ClassVar[bool] = True
    sized: ClassVar[bool] = False

    def __post_init__(self):
        if min(self.block, self.every, self.patience) < 1 or self.steps < 0:
            raise BudgetError(f"A wrapped core has block, every, patience >= 1 and steps >= 0, got {self}.")

    def check(self, shape: tuple[int, int], method: Method, words: int) -> None:
        """Blocks must divide both sides, and groups the blocks."""
        _, width = group_of(method.pattern)
        if any(size % self.block for size in shape) or self.block % width:
            raise ShapeError(
                f"Blocks of {self.block} must divide the {shape[0]} x {shape[1]} matrix, and groups of {width} the blocks."
            )

    def fit(self, weight: Float[Tensor, "out in"], stats: Stats, method: Method, words: int) -> Chain:
        """See `Form.fit`; the size is that of the pattern and the wrappers."""
        self.check((weight.shape[0], weight.shape[1]), method, words)
        rows, cols, plain = normalised(weight.double())
        support = select(method.score(plain, stats), method.pattern)
        core = Core(plain.float(), support, stats[InputMoments].norm.square(), self.block, method.pattern)
        for _ in core.descend(self.steps, self.every, self.patience, self.tolerance, self.seed):
            pass
        left = core.left * rows.float().view(len(core.left), self.block, 1)
        right = core.right * cols.float().view(len(core.right), 1, self.block)
        mask, values = untiled(core.mask), untiled(core.values)
        sparse = Sparse.of(values.to(weight.dtype), Support.from_mask(mask.cpu()))
        return Chain([BlockDiagonal(right.to(weight.dtype)), sparse, BlockDiagonal(left.to(weight.dtype))])


class Core:
    """The state of the descent, in tiles: entry (i, j) of tile (r, c) is that of row r * block + i, column c * block + j.

    Attributes:
        left, right: blocks of A (R, block, block) and of B (C, block, block).
        values, mask: S and what it keeps (R, C, block, block).
    """

    def __init__(
        self, weight: Float[Tensor, "out in"], support: Support, moments: Tensor, block: int, pattern: Pattern
    ):
        n, self.width = group_of(pattern)
        self.weight = tiled(weight, block)
        self.mask = tiled(support.mask().to(weight.device), block)
        self.values = torch.where(self.mask, self.weight, 0.0)
        eye = torch.eye(block, device=weight.device)
        self.left, self.right = eye.repeat(self.weight.shape[0], 1, 1), eye.repeat(self.weight.shape[1], 1, 1)
        self.h = moments.to(weight).view(-1, block)
        self.choices = torch.tensor(list(combinations(range(self.width), n)), device=weight.device)

    def error(self) -> Float[Tensor, "R C block block"]:
        """W' - A S B."""
        return self.weight - self.left.unsqueeze(1) @ self.values @ self.right

    def loss(self) -> float:
        """sum (W' - A S B)^2 h over all entries, relative to sum W'^2 h."""
        h = self.h.unsqueeze(1)
        return float((self.error().square() * h).sum() / (self.weight.square() * h).sum().clamp(min=1e-30))

    def descend(self, steps: int, every: int, patience: int, tolerance: float, seed: int) -> Iterator[float]:
        """Take the steps; gives the loss at the start and after each time A and B were fitted, never higher than before."""
        generator = torch.Generator(self.h.device).manual_seed(seed)
        yield (best := self.loss())
        waited = 0
        for start in range(0, steps, every):
            self.fit_wrappers()
            self.fit_groups(min(every, steps - start), generator)
            loss = self.loss()
            yield loss
            waited = 0 if loss < best * (1 - tolerance) else waited + every
            best = loss if waited == 0 else best
            if waited >= patience:
                return

    def fit_wrappers(self) -> None:
        """A by weighted least squares given S B, then B given A S: each row block and each column block its own system."""
        inner = self.values @ self.right
        weighted = inner * self.h.unsqueeze(1)
        normal, target = (weighted @ inner.mT).sum(dim=1), (self.weight @ weighted.mT).sum(dim=1)
        self.left = closer(normal, target.mT, self.left.mT).mT
        outer = self.left.unsqueeze(1) @ self.values
        # Weights of columns do not matter here: every column of B is fitted to one column of W'.
        self.right = closer((outer.mT @ outer).sum(dim=0), (outer.mT @ self.weight).sum(dim=0), self.right)

    def fit_groups(self, steps: int, generator: torch.Generator) -> None:
        """One group in each pair of blocks a step: the best values on the best of its supports."""
        block, per = self.h.shape[1], self.h.shape[1] // self.width
        seen = (self.right * self.h.unsqueeze(1)) @ self.right.mT
        at = torch.arange(per, device=seen.device)
        grams = seen.view(-1, per, self.width, per, self.width)[:, at, :, at].transpose(0, 1)  # (C, per, width, width)
        size = self.left.square().sum(dim=1)  # (R, block): |a_i|^2
        error = self.error()
        lines = [torch.arange(n, device=error.device) for n in error.shape[:2]]
        r, c = (i.flatten() for i in torch.meshgrid(*lines, indexing="ij"))
        pair = torch.arange(len(r), device=error.device)
        for _ in range(steps):
            slope = self.left.mT.unsqueeze(1) @ (error * self.h.unsqueeze(1)) @ self.right.mT
            slope = slope.view(len(r), block * per, self.width)
            drawn = torch.multinomial(slope.abs().sum(dim=2) + 1e-30, 1, generator=generator).squeeze(1)
            i, q = drawn // per, drawn % per
            values, mask = (t.view(len(r), block * per, self.width) for t in (self.values, self.mask))
            old = values[pair, drawn]
            gram = grams[c, q] * size[r, i].view(-1, 1, 1)
            wish = slope[pair, drawn] + (gram @ old.unsqueeze(2)).squeeze(2)
            new, kept = self._best(gram, wish, old, mask[pair, drawn])
            change = new - old
            rows = self.right.view(len(self.h), per, self.width, block)[c, q]
            step = self.left[r, :, i].unsqueeze(2) * (change.unsqueeze(1) @ rows)
            error = error - step.view_as(error)
            values[pair, drawn], mask[pair, drawn] = new, kept

    def _best(
        self,
        gram: Float[Tensor, "pairs m m"],
        wish: Float[Tensor, "pairs m"],
        old: Float[Tensor, "pairs m"],
        had: Bool[Tensor, "pairs m"],
    ) -> tuple[Float[Tensor, "pairs m"], Bool[Tensor, "pairs m"]]:
        """argmax over supports T of 2 wish_T u - u gram_TT u, u = gram_TT^-1 wish_T; the old group where none is better."""
        t = self.choices
        part = gram[:, t.unsqueeze(2), t.unsqueeze(1)].double()
        u = damped_solve(part, wish[:, t].double().unsqueeze(3)).squeeze(3).float()
        spread = t.expand(len(old), -1, -1)
        options = old.new_zeros(len(old), len(t), self.width).scatter_(2, spread, u)
        gain = 2 * (options * wish.unsqueeze(1)).sum(2) - (options * (options @ gram)).sum(2)
        best, each = gain.argmax(dim=1), torch.arange(len(old), device=old.device)
        before = 2 * (old * wish).sum(1) - (old * (gram @ old.unsqueeze(2)).squeeze(2)).sum(1)
        better = (gain[each, best] > before).unsqueeze(1)
        kept = torch.zeros_like(options, dtype=torch.bool).scatter_(2, spread, True)[each, best]
        return torch.where(better, options[each, best], old), torch.where(better, kept, had)


def damped_solve(
    matrix: Float[Tensor, "*batch n n"], target: Float[Tensor, "*batch n m"]
) -> Float[Tensor, "*batch n m"]:
    """X with (M + d I) X = target, d = 1e-9 of the mean diagonal: least squares that cannot fail."""
    damp = 1e-9 * matrix.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp(min=1e-30)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve(matrix + damp[..., None, None] * eye, target)


def closer(
    normal: Float[Tensor, "blocks n n"], target: Float[Tensor, "blocks n m"], old: Float[Tensor, "blocks n m"]
) -> Float[Tensor, "blocks n m"]:
    """The least-squares X of N X = target, as a step from `old`: where N is singular, X stays."""
    n, x = normal.double(), old.double()
    return (x + damped_solve(n, target.double() - n @ x)).to(old)


def normalised(
    weight: Float[Tensor, "rows cols"],
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " cols"], Float[Tensor, "rows cols"]]:
    """r, c and W' with W = diag(r) W' diag(c): columns are brought to unit length first, then rows; empty ones stay."""
    cols = weight.norm(dim=0)
    cols = torch.where(cols > 0, cols, 1.0)
    rows = (weight / cols).norm(dim=1)
    rows = torch.where(rows > 0, rows, 1.0)
    return rows, cols, weight / cols / rows.unsqueeze(1)


def group_of(pattern: Pattern) -> tuple[int, int]:
    """(N, M) of an N:M pattern along the inputs.

    Raises:
        PatternError: it is another pattern.
    """
    n, m = pattern.quota, pattern.group.cols
    if pattern.unit != ELEMENT or pattern.group.rows != 1 or not isinstance(n, int) or not m or pattern.inner or not n:
        raise PatternError(f"A core between wrappers keeps N of every M inputs (2:4); it cannot hold {pattern}.")
    return n, m


def tiled(matrix: Float[Tensor, "rows cols"], block: int) -> Float[Tensor, "R C block block"]:
    """The matrix as a grid of square tiles."""
    rows, cols = matrix.shape
    return matrix.view(rows // block, block, cols // block, block).transpose(1, 2).contiguous()


def untiled(tiles: Float[Tensor, "R C block block"]) -> Float[Tensor, "rows cols"]:
    """Inverse of `tiled`."""
    r, c, block, _ = tiles.shape
    return tiles.transpose(1, 2).reshape(r * block, c * block)
