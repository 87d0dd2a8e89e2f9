"""Documents as rows in the form that kernels score them from, in memory or mapped from a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.exec.search.rows import Found, Rows

LANES = 16  # a kernel may read so many entries beyond a row
NARROW = 65536  # terms below fit 16 bits


@dataclass(frozen=True)
class Ranked:
    """Answers of a search over documents 0 .. n-1.

    Attributes:
        scores, ids: float32 and int64 (queries, k), best first, ties to the lower id; -inf and -1 where there are fewer than k.
        opened: int64 (queries): documents scored in full; None where every posting was added up.
    """

    scores: Float[Tensor, "queries k"]
    ids: Int[Tensor, "queries k"]
    opened: Int[Tensor, " queries"] | None = None

    @property
    def found(self) -> Found:
        """(scores, ids)."""
        return self.scores, self.ids


@dataclass(frozen=True)
class Forward:
    """Row d holds `values[ptr[d]:ptr[d+1]]` at `terms[ptr[d]:ptr[d+1]]`; 16 entries more follow the last.

    Attributes:
        ptr: int64 (documents + 1).
        terms: uint16, or int32 where the width is above 65536.
        values: float32.
        width: number of terms.
    """

    ptr: Int[Tensor, " documents+1"]
    terms: Shaped[Tensor, " entries+16"]
    values: Float[Tensor, " entries+16"]
    width: int

    @classmethod
    def of(cls, rows: Rows) -> Forward:
        """From checked rows."""
        terms = torch.cat([rows.indices, rows.indices.new_zeros(LANES)])
        terms = terms if rows.width > NARROW else terms.to(torch.uint16)
        return cls(rows.ptr, terms, torch.cat([rows.values, rows.values.new_zeros(LANES)]), rows.width)

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def entries(self) -> int:
        """Postings of all documents together."""
        return int(self.ptr[-1]) if len(self.ptr) else 0

    @property
    def wide(self) -> bool:
        """Whether terms take 32 bits."""
        return self.terms.dtype is torch.int32

    def rows(self) -> Rows:
        """The same as checked rows: a copy."""
        n = self.entries
        return Rows(self.ptr, self.terms[:n].int(), self.values[:n], self.width)

    def arguments(self) -> tuple[int, ...]:
        """As the kernels take them."""
        return (*addresses(self.ptr, self.terms, self.values), len(self), self.width, self.wide)


def addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    """Where the tensors lie; 0 for None."""
    return tuple(0 if t is None else t.data_ptr() for t in tensors)


def room(
    queries: Rows, k: int, documents: int, width: int, allowed: Tensor | None, threads: int | None
) -> tuple[Ranked, tuple[int, ...]]:
    """Checked, room for the answers, and the arguments that every search kernel begins with.

    Raises:
        ShapeError: queries with another number of terms, or `allowed` that is no byte a document.
        BudgetError: k or `threads` out of bounds.
    """
    queries.ensure_unchanged()
    if queries.width != width:
        raise ShapeError(f"This index has {width} terms, the queries {queries.width}.")
    if allowed is not None and (allowed.dtype not in (torch.bool, torch.uint8) or allowed.shape != (documents,)):
        raise ShapeError(
            f"What may be found is a byte or bool a document ({documents}), not {allowed.dtype} {tuple(allowed.shape)}."
        )
    if k < 0 or (threads is not None and threads < 1):
        raise BudgetError(f"Needs k >= 0 and threads >= 1, got {k} and {threads}.")
    scores = torch.full((len(queries), k), -torch.inf)
    ids = torch.full((len(queries), k), -1)
    opened = torch.zeros(len(queries), dtype=torch.long)
    begin = (*addresses(queries.ptr, queries.indices, queries.values), len(queries), k)
    arguments = (*begin, *addresses(scores, ids), threads or torch.get_num_threads())
    return Ranked(scores, ids, opened), arguments


def fits(mask: Bool[Tensor, " documents"] | None) -> Tensor | None:
    """A mask as contiguous bytes for a kernel."""
    return None if mask is None else mask.to(torch.uint8).contiguous()
