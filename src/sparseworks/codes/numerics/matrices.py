"""Sparse matrices as they come (scipy, torch, dense) -> torch CSR, and the little that is asked of them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import NonFiniteError, ShapeError

with warnings.catch_warnings():  # torch says once a process that its CSR is beta; what is used here is tested
    warnings.simplefilter("ignore")
    torch.eye(1).to_sparse_csr()


def as_csr(matrix: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """A torch CSR matrix of a scipy sparse matrix, a torch matrix in any layout, or a numpy array.

    Raises:
        ShapeError: not a matrix.
        NonFiniteError: NaN or infinity.
    """
    if hasattr(matrix, "tocsr"):
        m = matrix.tocsr()
        m.sum_duplicates()
        made = torch.sparse_csr_tensor(
            torch.from_numpy(m.indptr.astype("int64")), torch.from_numpy(m.indices.astype("int64")),
            torch.from_numpy(m.data.astype("float64")).to(dtype), m.shape, check_invariants=False,
        )  # fmt: skip
    else:
        given = matrix if isinstance(matrix, Tensor) else torch.as_tensor(matrix)
        if given.dim() != 2:
            raise ShapeError(f"A matrix is needed, got {tuple(given.shape)}.")
        given = given.to(dtype)
        made = given if given.layout is torch.sparse_csr else given.to_sparse_csr()
    if not bool(torch.isfinite(made.values()).all()):
        raise NonFiniteError("The matrix holds NaN or infinity.")
    return made


def row_sums(matrix: Tensor) -> Float[Tensor, " rows"]:
    """Sums of the rows of a CSR matrix."""
    return matrix @ torch.ones(matrix.shape[1], dtype=matrix.dtype)


def rows_of(matrix: Tensor) -> Tensor:
    """The row of every stored entry of a CSR matrix."""
    ptr = matrix.crow_indices()
    return torch.repeat_interleave(torch.arange(len(ptr) - 1), ptr[1:] - ptr[:-1])


def scaled(matrix: Tensor, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
    """diag(rows) M diag(columns) of a CSR matrix."""
    values = matrix.values()
    if rows is not None:
        values = values * rows[rows_of(matrix)]
    if columns is not None:
        values = values * columns[matrix.col_indices()]
    return torch.sparse_csr_tensor(
        matrix.crow_indices(), matrix.col_indices(), values, matrix.shape, check_invariants=False
    )


def transposed(matrix: Tensor) -> Tensor:
    """M^T of a CSR matrix, in CSR."""
    return matrix.to_sparse_coo().t().to_sparse_csr()
