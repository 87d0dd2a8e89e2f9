"""A truncated SVD that follows sparse updates of its matrix, whose residuals are never made dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.numerics.matrices import as_csr, rows_of, transposed
from sparseworks.core.errors import BudgetError, ShapeError

_LOST = 1e-12  # of the largest: a direction of the residual below it is rounding


class _Basis:
    """Columns X W, X = [dense | sparse | sparse ...] and W small: what is orthonormal is the product, which is rarely formed."""

    def __init__(self, dense: Float[Tensor, "rows k"]):
        self.parts: list[Tensor] = [dense]
        self.weights: list[Tensor] = [torch.eye(dense.shape[1], dtype=dense.dtype)]

    @property
    def rows(self) -> int:
        return self.parts[0].shape[0]

    def into(self, sparse: Tensor) -> Float[Tensor, "k s"]:
        """(X W)^T E for a sparse E in CSR; products of sparse parts stay sparse."""
        turned = transposed(sparse)
        products = [turned @ p for p in self.parts]
        dense = [p if p.layout is torch.strided else p.to_dense() for p in products]
        return torch.stack([p @ w for p, w in zip(dense, self.weights, strict=True)]).sum(0).T

    def extend(self, sparse: Tensor, keep: Tensor, add: Tensor) -> None:
        """X W <- X (W keep) + E add."""
        self.weights = [w @ keep for w in self.weights]
        self.parts.append(sparse)
        self.weights.append(add)

    def dense(self) -> Tensor:
        made = self.parts[0] @ self.weights[0]
        for p, w in zip(self.parts[1:], self.weights[1:], strict=True):  # rows that a part does not touch are not read
            made.index_add_(0, rows_of(p), p.values().unsqueeze(1) * w[p.col_indices()])
        return made

    def settle(self, most: int) -> None:
        """Multiply out once there are more than `most` parts, so that their list begins anew."""
        if len(self.parts) > most:
            self.__init__(self.dense())


@dataclass
class UpdatedSVD:
    """U diag(s) V^T of rank k, kept up to date under new columns, new rows and low-rank changes, all sparse.

    New columns E: C = U^T E, the residual's Gram E^T E - C^T C = R^T R gives its basis Q = (E - U C) R^-1, kept as (E, C, R);
    the SVD of the small [[diag(s), C], [0, R]] = F S G^T turns the bases: U <- [U Q] F, V <- blockdiag(V, I) G, cut to k.

    Attributes:
        rank: how many triplets are kept.
        settle_every: after so many updates of one side the bases are multiplied out.

    Source: Deng, Gao and Jia, 2024 (arXiv 2401.09703); the dense form is Zha and Simon, 1999.
    """

    rank: int
    settle_every: int = 16

    @classmethod
    def of(cls, matrix: Any, rank: int, **options: Any) -> UpdatedSVD:
        """Of a matrix, by a dense SVD; for what is too large for that give `from_factors` its factors.

        Raises:
            BudgetError: a rank beyond the smaller side.
        """
        u, s, v = torch.linalg.svd(as_csr(matrix).to_dense(), full_matrices=False)
        if not 0 < rank <= len(s):
            raise BudgetError(f"A matrix {tuple(u.shape[:1] + v.shape[1:])} has no {rank} singular values.")
        return cls.from_factors(u[:, :rank], s[:rank], v[:rank].T, **options)

    @classmethod
    def from_factors(cls, u: Tensor, s: Tensor, v: Tensor, **options: Any) -> UpdatedSVD:
        """Of its factors: u (rows, k) and v (columns, k) with orthonormal columns.

        Raises:
            ShapeError: factors that do not fit together.
        """
        if u.dim() != 2 or v.dim() != 2 or not u.shape[1] == v.shape[1] == len(s):
            raise ShapeError(f"Factors {tuple(u.shape)}, {tuple(s.shape)}, {tuple(v.shape)} do not fit together.")
        made = cls(len(s), **options)
        made._u, made._v, made._s = _Basis(u.double()), _Basis(v.double()), s.double()
        return made

    @property
    def factors(self) -> tuple[Float[Tensor, "rows k"], Float[Tensor, " k"], Float[Tensor, "columns k"]]:
        """(U, s, V), multiplied out."""
        return self._u.dense(), self._s, self._v.dense()

    def add_columns(self, columns: Any) -> None:
        """[A, E] for sparse E (rows, new).

        Raises:
            ShapeError: another number of rows.
        """
        self._v = self._grow(self._u, self._v, as_csr(columns))

    def add_rows(self, rows: Any) -> None:
        """[A; E] for sparse E (new, columns).

        Raises:
            ShapeError: another number of columns.
        """
        self._u = self._grow(self._v, self._u, transposed(as_csr(rows)))

    def _grow(self, near: _Basis, far: _Basis, e: Tensor) -> _Basis:
        """Columns e join on the side of `near`; gives the other side's basis, which got one row more for each."""
        if e.shape[0] != near.rows:
            raise ShapeError(f"What is added has {e.shape[0]} entries along the side that stays, not {near.rows}.")
        k = len(self._s)
        c, q, r = _residual(near, e)
        core = torch.cat([torch.cat([torch.diag(self._s), c], 1), torch.cat([r.new_zeros(len(r), k), r], 1)])
        f, s, gt = torch.linalg.svd(core, full_matrices=False)
        keep = min(self.rank, len(s))
        f, g, self._s = f[:, :keep], gt[:keep].T, s[:keep]
        _extend(near, e, c, q, f)
        grown = torch.cat([far.dense() @ g[:k], g[k:]])  # the far side's rows are as many as its vectors: dense anyway
        near.settle(self.settle_every)
        return _Basis(grown)

    def add_low_rank(self, left: Any, right: Any) -> None:
        """A + D E^T for sparse D (rows, s) and E (columns, s).

        Raises:
            ShapeError: sizes that do not fit.
        """
        d, e = as_csr(left), as_csr(right)
        if d.shape[0] != self._u.rows or e.shape[0] != self._v.rows or d.shape[1] != e.shape[1]:
            raise ShapeError(f"{tuple(d.shape)} and {tuple(e.shape)} do not fit {self._u.rows} x {self._v.rows}.")
        (cd, qd, rd), (ce, qe, re) = _residual(self._u, d), _residual(self._v, e)
        core = torch.cat([cd, rd]) @ torch.cat([ce, re]).T
        core[: len(self._s), : len(self._s)] += torch.diag(self._s)
        f, s, gt = torch.linalg.svd(core, full_matrices=False)
        keep = min(self.rank, len(s))
        self._s = s[:keep]
        _extend(self._u, d, cd, qd, f[:, :keep])
        _extend(self._v, e, ce, qe, gt[:keep].T)
        self._u.settle(self.settle_every)
        self._v.settle(self.settle_every)


def _residual(basis: _Basis, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(C, T, R): C = U^T E, Q = (E - U C) T orthonormal, R = Q^T E. Directions lost in rounding are left out of Q."""
    c = basis.into(e)
    gram = (transposed(e) @ e).to_dense()
    values, vectors = torch.linalg.eigh(gram - c.T @ c)
    held = values > _LOST * gram.diagonal().max().clamp(min=torch.finfo(gram.dtype).tiny)
    root = values[held].sqrt()
    return c, vectors[:, held] / root, root.unsqueeze(1) * vectors[:, held].T


def _extend(basis: _Basis, e: Tensor, c: Tensor, q: Tensor, f: Tensor) -> None:
    """[U Q] F = U (F_1 - C T F_2) + E (T F_2)."""
    k = c.shape[0]
    add = q @ f[k:]
    basis.extend(e, f[:k] - c @ add, add)
