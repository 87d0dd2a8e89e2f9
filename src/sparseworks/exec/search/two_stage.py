"""Approximate search in two stages: strongest postings in whole numbers, then exact scores of the best candidates."""

from __future__ import annotations

import mmap
from typing import Any

import torch
from torch import Tensor

from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError
from sparseworks.exec.native import native
from sparseworks.exec.search.rows import Found, Guard, Rows, asked, best, dense

_MOST_TERMS = 64
_LANES = 16  # a kernel may read so many entries beyond a document
_LARGE = 2**21  # bytes
_WHOLE = 257  # query weights sum to at most this, so that sums of impacts up to 255 fit 16 bits


class TwoStageIndex:
    """Per term the `postings` documents of largest value, as 8-bit impacts, and every document for exact scores.

    Only positive values are candidates' evidence; exact scores use all of them.

    Args:
        documents, width: as in `InvertedIndex`.
        postings: longest list kept per term.
        dtype: of the values that re-rank, float16 or float32.

    Raises:
        BudgetError: `postings` below 1.
        DtypeError: another `dtype`.
        NonFiniteError: values beyond float16.
    """

    def __init__(
        self, documents: Any, width: int | None = None, *, postings: int = 1000, dtype: torch.dtype = torch.float16
    ) -> None:
        if postings < 1:
            raise BudgetError(f"A list keeps at least one posting, not {postings}.")
        if dtype not in (torch.float16, torch.float32):
            raise DtypeError(f"Documents are kept in float16 or float32, not {dtype}.")
        rows = Rows.of(documents, width)
        self.rows, self.documents, self.width, self.postings = rows, len(rows), rows.width, postings
        self._values = torch.cat([rows.values, rows.values.new_zeros(_LANES)]).to(dtype)
        if not bool(torch.isfinite(self._values).all()):
            raise NonFiniteError("Values exceed float16; use dtype=torch.float32.")
        self._wide = self.width > 65536
        self._terms = torch.cat([rows.indices, rows.indices.new_zeros(_LANES)])
        if not self._wide:
            self._terms = self._terms.to(torch.uint16)
        self._ptr, self._posting, self._impact = _impact_ordered(rows, postings)
        self._terms, self._values = _large_pages(self._terms), _large_pages(self._values)
        self._guard = Guard(rows.ptr, self._terms, self._values, self._ptr, self._posting, self._impact)

    def search(self, queries: Any, k: int, *, terms: int = 8, candidates: int = 100) -> Found:
        """About the k largest <query, document>: scores (exact up to `dtype`) and ids, best first, ties to the lower id.

        Where fewer than k candidates are met, the rest has score -inf and id -1.

        Args:
            queries: sparse rows, one a query.
            k: documents per query.
            terms: strongest terms of the query that vote for candidates, at most 64.
            candidates: documents scored exactly.

        Raises:
            ShapeError: queries with another number of terms.
            BudgetError: k, `terms` or `candidates` out of bounds.
            KernelError: the index was written to.
        """
        rows = Rows.of(queries, self.width)
        if rows.width != self.width:
            raise ShapeError(f"This index has {self.width} terms, the queries {rows.width}.")
        if not (0 <= k <= candidates and 1 <= terms <= _MOST_TERMS):
            raise BudgetError(
                f"Needs 0 <= k <= candidates and 1 <= terms <= {_MOST_TERMS}: {k}, {candidates}, {terms}."
            )
        self._guard.check()
        found, arguments = asked(rows, k)
        if not k or not len(rows):
            return found
        module = native()
        if module is None:
            return self._reference(rows, k, terms, candidates)
        buffers = (self._ptr, self._posting, self._impact, self.rows.ptr, self._terms, self._values)
        module.search_two_stage(
            *arguments, *(t.data_ptr() for t in buffers), self.documents, self.width, terms, candidates,
            terms * self.postings, self._wide, self._values.dtype is torch.float16, 0,
        )  # fmt: skip
        return found

    def _reference(self, rows: Rows, k: int, terms: int, candidates: int) -> Found:
        scores = torch.full((len(rows), k), -torch.inf)
        ids = torch.full((len(rows), k), -1)
        for q in range(len(rows)):
            query = dense(rows, q, q + 1)[0]
            chosen = self._candidates(query, terms, candidates)
            exact = torch.stack([self._score(query, int(d)) for d in chosen]) if len(chosen) else torch.empty(0)
            value, at = best(exact[None], k)
            scores[q, : value.shape[1]], ids[q, : value.shape[1]] = value[0], chosen[at[0]]
        return scores, ids

    def _candidates(self, query: Tensor, terms: int, candidates: int) -> Tensor:
        order = query.argsort(descending=True, stable=True)[:terms]
        order = order[query[order] > 0]
        shares = (query[order] / query[order].sum() * _WHOLE).long().clamp(min=1)
        sums = torch.zeros(self.documents, dtype=torch.long)
        for term, share in zip(order.tolist(), shares.tolist(), strict=True):
            at = slice(int(self._ptr[term]), int(self._ptr[term + 1]))
            sums.index_add_(0, self._posting[at].long(), share * self._impact[at].long())
        chosen = best(sums[None].float(), candidates)[1][0]
        return chosen[sums[chosen] > 0].sort().values

    def _score(self, query: Tensor, document: int) -> Tensor:
        at = slice(int(self.rows.ptr[document]), int(self.rows.ptr[document + 1]))
        return (query[self.rows.indices[at].long()] * self._values[at].float()).sum()


def _large_pages(t: Tensor) -> Tensor:
    """A copy on pages of 2 MiB where the system has them: each document scored lies on other pages than the last."""
    if not hasattr(mmap, "MADV_HUGEPAGE") or t.nbytes < _LARGE:
        return t
    room = mmap.mmap(-1, -(-t.nbytes // _LARGE) * _LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room.madvise(mmap.MADV_HUGEPAGE)
    with torch.inference_mode(False):
        return torch.frombuffer(room, dtype=t.dtype, count=t.numel()).copy_(t)


def _impact_ordered(rows: Rows, postings: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pointers, documents and impacts 1..255 of the largest positive values of each term."""
    by_value = rows.values.argsort(descending=True, stable=True)
    order = by_value[rows.indices[by_value].argsort(stable=True)]
    order = order[rows.values[order] > 0]
    term = rows.indices[order].long()
    counts = torch.bincount(term, minlength=rows.width)
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[term]
    order = order[place < postings]
    ptr = torch.cat([torch.zeros(1, dtype=torch.long), counts.clamp(max=postings).cumsum(0)])
    values = rows.values[order]
    top = values.max() if len(values) else torch.ones(())
    impact = (values / top * 255).round().clamp(1, 255).to(torch.uint8)
    return ptr, rows.row_of()[order].int(), impact
