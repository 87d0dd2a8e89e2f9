"""A projection onto the rows of A (V kron V), V = W^(1/2), that follows low-rank changes of W without being formed anew."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError


class KroneckerProjection:
    """h -> B^T (B B^T)^-1 B h with B = A (V kron V) and V = W^(1/2), W symmetric positive definite.

    B B^T = A (W kron W) A^T =: M. When W grows by U C U^T of rank r, W' kron W' - W kron W is a sum of three terms of rank n r, n r and r^2,
    so M^-1 follows by Woodbury; V' = W'^(1/2) comes from an eigenbasis, n x n. After `batch` changes, or where a change is not small, M
    is factored anew: no error piles up. What the paper adds for an adaptive adversary (sketches, private medians) is left out.

    Args:
        a: A, (m, n * n), of full row rank.
        w: W, (n, n).
        batch: changes after which M is factored anew.

    Raises:
        ShapeError, NonFiniteError: operands that do not fit, NaN or infinity.
        BudgetError: W is not symmetric positive definite, A W A^T is singular, or batch < 1.

    Source: Song, Yang, Yang and Zhang, 2022 (arXiv 2210.11542); the Woodbury part.
    """

    def __init__(self, a: Float[Tensor, "m nn"], w: Float[Tensor, "n n"], batch: int = 16):
        n = w.shape[0] if w.dim() == 2 else 0
        if w.dim() != 2 or w.shape != (n, n) or a.dim() != 2 or a.shape[1] != n * n or a.shape[0] > n * n:
            raise ShapeError(
                f"A is (m, n * n) with m <= n * n and W (n, n), got {tuple(a.shape)} and {tuple(w.shape)}."
            )
        if not bool(torch.isfinite(a).all() and torch.isfinite(w).all()):
            raise NonFiniteError("A or W holds NaN or infinity.")
        if batch < 1:
            raise BudgetError(f"A batch of changes is at least 1, got {batch}.")
        self.a, self.batch = a, batch
        self.changes = 0
        self._set(w)
        self._factor()

    def update(self, u: Float[Tensor, "n r"], c: Float[Tensor, "r r"] | None = None) -> None:
        """W <- W + U C U^T, C symmetric (identity by default).

        Raises:
            ShapeError: U or C do not fit.
            BudgetError: W would not be positive definite any more; nothing has changed then.
        """
        c = torch.eye(u.shape[-1], dtype=u.dtype) if c is None else c
        if u.dim() != 2 or len(u) != len(self.w) or c.shape != (u.shape[1],) * 2:
            raise ShapeError(
                f"A change is U ({len(self.w)}, r) and C (r, r), got {tuple(u.shape)} and {tuple(c.shape)}."
            )
        before = self.w
        self._set(before + u @ c @ u.mT)
        self.changes += 1
        if self.changes >= self.batch or not self._woodbury(u, c, before):
            self._factor()

    def __call__(self, h: Float[Tensor, " nn"]) -> Float[Tensor, " nn"]:
        """B^T (B B^T)^-1 B h, by two products of n x n a side and no n^2 x n^2 matrix.

        Raises:
            ShapeError: h has another length.
        """
        if h.shape != self.a.shape[1:]:
            raise ShapeError(f"h has length {self.a.shape[1]}, got {tuple(h.shape)}.")
        spread = self._both(h, self.root)
        return self._both(self.a.mT @ (self._inverse @ (self.a @ spread)), self.root)

    def _both(self, rows: Tensor, v: Tensor) -> Tensor:
        """(V kron V) x for x, or for every row of a matrix."""
        square = rows.unflatten(-1, v.shape)
        return (v @ square @ v.mT).flatten(-2)

    def _set(self, w: Tensor) -> None:
        if not torch.allclose(w, w.mT, atol=1e-10 * float(w.abs().max())):
            raise BudgetError("W is not symmetric.")
        values, vectors = torch.linalg.eigh(w)
        if float(values[0]) <= 0:
            raise BudgetError(f"W has to stay positive definite; its least eigenvalue would be {float(values[0]):.3g}.")
        self.w = w
        self.root: Float[Tensor, "n n"] = (vectors * values.sqrt()) @ vectors.mT

    def _factor(self) -> None:
        m = self._both(self.a, self.w) @ self.a.mT
        factor, bad = torch.linalg.cholesky_ex(m)
        if bool(bad):
            raise BudgetError("A (W kron W) A^T is singular: A needs full row rank.")
        self._inverse = torch.cholesky_inverse(factor)
        self.changes = 0

    def _woodbury(self, u: Tensor, c: Tensor, before: Tensor) -> bool:
        """M'^-1 from M^-1 with W' kron W' = W kron W + (D kron W') + (W kron D), D = U C U^T, one term after the other."""
        n, m = len(before), len(self.a)
        if 2 * n * u.shape[1] >= m:
            return False  # the change has as high a rank as M: factoring is cheaper
        cube = self.a.view(m, n, n)
        left = torch.einsum("mij,ir->mrj", cube, u).flatten(1)  # A (U kron I)
        right = torch.einsum("mij,jr->mir", cube, u).flatten(1)  # A (I kron U)
        return self._low_rank(left, torch.kron(c, self.w)) and self._low_rank(right, torch.kron(before, c))

    def _low_rank(self, left: Tensor, core: Tensor) -> bool:
        """(M + L K L^T)^-1 = M^-1 - M^-1 L (K^-1 + L^T M^-1 L)^-1 L^T M^-1, written so that K may be singular."""
        through = self._inverse @ left
        inner = torch.eye(len(core), dtype=core.dtype) + core @ (left.mT @ through)
        solved, bad = torch.linalg.solve_ex(inner, core @ through.mT)
        if bool(bad) or not bool(torch.isfinite(solved).all()):
            return False
        self._inverse = self._inverse - through @ solved
        return True
