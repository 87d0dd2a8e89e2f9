"""Sparse vectors as CSR, checked once: what the indexes are built from and asked with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import KernelError, NonFiniteError, ShapeError

Found = tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]


@dataclass(frozen=True)
class Rows:
    """Sparse rows: row i holds `values[ptr[i]:ptr[i+1]]` at `indices[ptr[i]:ptr[i+1]]`, which rise strictly.

    Attributes:
        ptr: int64 (rows + 1).
        indices: int32 (entries), in [0, width).
        values: float32 (entries), finite.
        width: length of a dense row.

    Raises:
        ShapeError: pointers that do not rise from 0 to the number of entries; indices that do not rise or lie outside.
        NonFiniteError: NaN or infinity among the values.
    """

    ptr: Int[Tensor, " rows+1"]
    indices: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    width: int

    def __post_init__(self) -> None:
        for name, dtype in (("ptr", torch.int64), ("indices", torch.int32), ("values", torch.float32)):
            with torch.inference_mode(False):  # a copy that nobody else can write to, and that counts writes
                t = torch.as_tensor(getattr(self, name)).detach().to("cpu", copy=True)
            if t.dim() != 1:
                raise ShapeError(f"{name!r} of sparse rows has one dimension, not shape {tuple(t.shape)}.")
            if name != "values" and t.is_floating_point():
                raise ShapeError(f"{name!r} of sparse rows are whole numbers, not {t.dtype}.")
            if name == "indices" and t.numel() and not 0 <= int(t.min()) <= int(t.max()) < self.width:
                raise ShapeError(f"Indices of sparse rows must lie in [0, {self.width}).")
            with torch.inference_mode(False):
                object.__setattr__(self, name, t.to(dtype).contiguous())
        n, ptr = len(self.indices), self.ptr
        if (
            not len(ptr)
            or int(ptr[0]) != 0
            or int(ptr[-1]) != n
            or bool((ptr.diff() < 0).any())
            or len(self.values) != n
        ):
            raise ShapeError(
                f"'ptr' must rise from 0 to the number of indices and values ({n} and {len(self.values)})."
            )
        if not bool(torch.isfinite(self.values).all()):
            raise NonFiniteError("Sparse rows hold NaN or infinity.")
        falls = self.indices.diff() <= 0
        inner = ptr[1:-1]
        starts = inner[(inner > 0) & (inner < n)] - 1
        falls[starts] = False
        if bool(falls.any()):
            raise ShapeError("Indices within a sparse row must rise strictly: sort them and add duplicates up.")
        object.__setattr__(self, "_guard", Guard(self.ptr, self.indices, self.values))

    def ensure_unchanged(self) -> None:
        """Raises KernelError where a buffer was written to since it was checked."""
        self.__dict__["_guard"].check()

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def row_of(self) -> Int[Tensor, " entries"]:
        """The row of each entry."""
        return torch.repeat_interleave(torch.arange(len(self)), self.ptr.diff())

    @classmethod
    def of(cls, given: Any, width: int | None = None) -> Rows:
        """From `Rows`, a scipy sparse matrix, or `(ptr, indices, values)` with `width`.

        Raises:
            ShapeError: none of these, or no width.
        """
        if isinstance(given, Rows):
            return given
        if hasattr(given, "tocsr"):
            csr = given.tocsr()
            if not csr.has_canonical_format:
                csr = csr.copy()
                csr.sum_duplicates()
            return cls(*(torch.from_numpy(part) for part in (csr.indptr, csr.indices, csr.data)), csr.shape[1])  # pyright: ignore[reportCallIssue]
        if isinstance(given, Sequence) and len(given) == 3 and width is not None:
            return cls(*given, width)  # pyright: ignore[reportCallIssue]
        raise ShapeError(
            "Sparse rows are a scipy sparse matrix, Rows, or (ptr, indices, values) together with a width."
        )


class Guard:
    """Buffers whose addresses go to C++: shapes are fixed when packed, and no write may follow."""

    def __init__(self, *buffers: Tensor) -> None:
        self._buffers, self._stamp = buffers, self._writes(buffers)

    @staticmethod
    def _writes(buffers: Sequence[Tensor]) -> list[int]:
        return [0 if t.is_inference() else t._version for t in buffers]

    def check(self) -> None:
        """Raises KernelError where a buffer was written to since it was packed."""
        if self._writes(self._buffers) != self._stamp:
            raise KernelError("Sparse rows or an index were written to after they were checked. Build them anew.")


def asked(queries: Rows, k: int) -> tuple[Found, tuple[int, ...]]:
    """Room for the answers, and the arguments that every search kernel begins with."""
    queries.ensure_unchanged()
    scores = torch.empty(len(queries), k)
    ids = torch.empty(len(queries), k, dtype=torch.long)
    addresses = (t.data_ptr() for t in (queries.ptr, queries.indices, queries.values))
    arguments = (*addresses, len(queries), k, scores.data_ptr(), ids.data_ptr(), torch.get_num_threads())
    return (scores, ids), arguments


def best(scores: Float[Tensor, "queries n"], k: int) -> Found:
    """The k largest of each row, best first, ties to the lower position."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, order), order


def dense(rows: Rows, first: int, last: int) -> Float[Tensor, "n width"]:
    """Rows [first, last) with zeros written out."""
    out = torch.zeros(last - first, rows.width)
    at = slice(int(rows.ptr[first]), int(rows.ptr[last]))
    row = torch.repeat_interleave(torch.arange(last - first), rows.ptr[first : last + 1].diff())
    out[row, rows.indices[at].long()] = rows.values[at]
    return out
