"""An inverted index that scores every posting of a query's terms: exact."""

from __future__ import annotations

from typing import Any

import torch

from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.exec.native import native
from sparseworks.exec.search.rows import Found, Guard, Rows, asked, best, dense


class InvertedIndex:
    """Documents by term, cut into ranges of documents so that a range's sums stay in cache.

    Memory: 6 bytes a posting, and 8 bytes a term and range.

    Args:
        documents: scipy sparse matrix (documents, terms), `Rows`, or `(ptr, indices, values)`.
        width: number of terms, where `documents` does not say.
        size: documents in a range, at most 65536.

    Raises:
        BudgetError: `size` out of bounds.
        ShapeError, NonFiniteError: as `Rows`.
    """

    def __init__(self, documents: Any, width: int | None = None, *, size: int = 32768) -> None:
        if not 1 <= size <= 65536:
            raise BudgetError(f"A range holds 1 to 65536 documents, not {size}.")
        rows = Rows.of(documents, width)
        self.documents, self.width, self.size = len(rows), rows.width, size
        self.ranges = -(-self.documents // size)
        order = rows.indices.argsort(stable=True)
        document = rows.row_of()[order]
        segment = rows.indices[order].long() * self.ranges + document // size
        counts = torch.bincount(segment, minlength=self.width * self.ranges)
        self._ptr = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        self._local = (document % size).to(torch.uint16)
        self._values = rows.values[order]
        self._guard = Guard(self._ptr, self._local, self._values)

    def search(self, queries: Any, k: int) -> Found:
        """The k largest <query, document> of each query: scores and document ids, best first, ties to the lower id.

        Documents that share no term score 0. Scores are float32 sums in the order of the query's terms.

        Raises:
            ShapeError: queries with another number of terms.
            BudgetError: k is not in 0..documents.
            KernelError: the index was written to.
        """
        rows = Rows.of(queries, self.width)
        if rows.width != self.width:
            raise ShapeError(f"This index has {self.width} terms, the queries {rows.width}.")
        if not 0 <= k <= self.documents:
            raise BudgetError(f"Cannot find {k} of {self.documents} documents.")
        self._guard.check()
        module = native()
        found, arguments = asked(rows, k)
        if not k or not len(rows):
            return found
        if module is None:
            return self._reference(rows, k)
        addresses = (t.data_ptr() for t in (self._ptr, self._local, self._values))
        module.search_exact(*arguments, *addresses, self.documents, self.ranges, self.size, 0)
        return found

    def _reference(self, rows: Rows, k: int) -> Found:
        lengths = self._ptr.diff()
        segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        document = segment % self.ranges * self.size + self._local.long()
        term = segment // self.ranges
        found = []
        for q in range(len(rows)):
            scores = torch.zeros(self.documents).index_add(0, document, dense(rows, q, q + 1)[0][term] * self._values)
            found.append(best(scores[None], k))
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
