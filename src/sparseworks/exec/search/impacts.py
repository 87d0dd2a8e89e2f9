"""The strongest postings of each list: static pruning, for blocks of them and for votes in whole numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.exec.native import native
from sparseworks.exec.search.forward import Forward, Ranked, addresses, fits, room
from sparseworks.exec.search.lists import Lists, put
from sparseworks.exec.search.rows import Rows, dense

_SAMPLED = 2**22  # values from which a threshold is read
_MOST_TERMS = 64
_WHOLE = 257  # as in the kernel: weights of a query sum to at most this


def kept_postings(lists: Lists, postings: int, *, spread: float = 1.5) -> Int[Tensor, " width"]:
    """How many of each list stay where `postings` stay a list on average: one threshold on the value for all lists.

    Lists are cut at `spread * postings` too (Bruch et al., 2024, arXiv 2404.18812, official code). Only values above 0 stay.

    Raises:
        BudgetError: `postings` below 1.
    """
    if postings < 1:
        raise BudgetError(f"A list keeps at least one posting, not {postings}.")
    values, wanted = lists.values, postings * lists.width
    threshold = 0.0
    if len(values) > wanted:
        sample = values[:: -(-len(values) // _SAMPLED)]
        drop = round(len(sample) * (1 - wanted / len(values)))
        threshold = float(sample.kthvalue(min(max(drop, 1), len(sample))).values)
    return _counts(lists, (values >= threshold) & (values > 0)).clamp(max=round(spread * postings))


def _counts(lists: Lists, of: Bool[Tensor, " entries"]) -> Int[Tensor, " width"]:
    """How many postings of each term are marked."""
    sums = torch.cat([torch.zeros(1, dtype=torch.long), of.cumsum(0)])
    ends = lists.ptr[:: lists.ranges] if lists.ranges else torch.zeros(lists.width + 1, dtype=torch.long)
    return sums[ends[1:]] - sums[ends[:-1]]


def strongest_postings(
    lists: Lists, counts: Int[Tensor, " width"], threads: int | None = None
) -> tuple[Int[Tensor, " width+1"], Int[Tensor, " kept"], Float[Tensor, " kept"]]:
    """Pointers, documents (int32) and values of the `counts[t]` largest of each list, best first, ties to the lower document."""
    ptr = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    n, module = int(ptr[-1]), native()
    if module is None:
        document, term = lists.document_of(), lists.term_of()
        order = lists.values.argsort(descending=True, stable=True)
        order = order[term[order].argsort(stable=True)]
        place = torch.arange(len(order)) - lists.ptr[:-1][:: max(lists.ranges, 1)][term[order]]
        order = order[place < counts[term[order]]]
        return ptr, document[order].int(), lists.values[order]
    posting, impact = torch.empty(n, dtype=torch.int32), torch.empty(n)
    buffers = addresses(lists.ptr, lists.local, lists.values)
    into = addresses(ptr, posting, impact)
    module.search_impacts(*buffers, lists.width, lists.ranges, lists.size, *into, threads or torch.get_num_threads())
    return ptr, posting, impact


@dataclass(frozen=True)
class Impacts:
    """Per term the documents of largest value, as impacts 1..255: votes for candidates, which are then scored from their rows.

    Attributes:
        ptr: int64 (width + 1).
        posting: int32 documents.
        impact: uint8.
        longest: longest list.
    """

    ptr: Int[Tensor, " width+1"]
    posting: Int[Tensor, " kept"]
    impact: UInt8[Tensor, " kept"]
    longest: int

    @classmethod
    def of(cls, lists: Lists, postings: int) -> Impacts:
        """The `postings` largest positive values of each list.

        Raises:
            BudgetError: `postings` below 1.
        """
        if postings < 1:
            raise BudgetError(f"A list keeps at least one posting, not {postings}.")
        ptr, posting, value = strongest_postings(lists, _counts(lists, lists.values > 0).clamp(max=postings))
        top = value.max() if len(value) else torch.ones(())
        return cls(ptr, posting, (value / top * 255).round().clamp(1, 255).to(torch.uint8), postings)

    def search(
        self,
        forward: Forward,
        queries: Rows,
        k: int,
        allowed: Bool[Tensor, " documents"] | None = None,
        threads: int | None = None,
        *,
        terms: int = 8,
        candidates: int = 100,
    ) -> Ranked:
        """As `TwoStageIndex.search`, on these buffers.

        Raises:
            BudgetError: k, `terms` or `candidates` out of bounds.
            ShapeError: as `exec.search.forward.room`.
        """
        ranked, arguments = room(queries, k, len(forward), forward.width, allowed, threads)
        if not (k <= candidates and 1 <= terms <= _MOST_TERMS):
            raise BudgetError(f"Needs k <= candidates and 1 <= terms <= {_MOST_TERMS}: {k}, {candidates}, {terms}.")
        module = native()
        assert ranked.opened is not None
        if not k or not len(queries):
            return ranked
        if module is None:
            return self._reference(forward, queries, ranked, allowed, terms, candidates)
        mask = fits(allowed)
        buffers = addresses(self.ptr, self.posting, self.impact, forward.ptr, forward.terms, forward.values)
        module.search_two_stage(
            *arguments, *buffers, len(forward), forward.width, terms, candidates, terms * self.longest, forward.wide, False,
            *addresses(mask),
        )  # fmt: skip
        ranked.opened.fill_(min(candidates, len(forward)))
        return ranked

    def _reference(
        self, forward: Forward, queries: Rows, ranked: Ranked, allowed: Tensor | None, terms: int, candidates: int
    ) -> Ranked:
        rows = forward.rows()
        for q in range(len(queries)):
            query = dense(queries, q, q + 1)[0]
            order = query.argsort(descending=True, stable=True)[:terms]
            order = order[query[order] > 0]
            shares = (query[order] / query[order].sum() * _WHOLE).long().clamp(min=1)
            sums = torch.zeros(len(forward), dtype=torch.long)
            for term, share in zip(order.tolist(), shares.tolist(), strict=True):
                at = slice(int(self.ptr[term]), int(self.ptr[term + 1]))
                sums.index_add_(0, self.posting[at].long(), share * self.impact[at].long())
            sums = sums if allowed is None else sums * allowed.bool()
            chosen = sums.argsort(descending=True, stable=True)[:candidates]
            chosen = chosen[sums[chosen] > 0].sort().values
            put(ranked, q, scores_of(rows, query, chosen), chosen)
            assert ranked.opened is not None
            ranked.opened[q] = len(chosen)
        return ranked


def scores_of(rows: Rows, query: Float[Tensor, " width"], ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """<query, row> of these rows."""
    spans = [slice(int(rows.ptr[d]), int(rows.ptr[d + 1])) for d in ids.tolist()]
    return torch.stack([(query[rows.indices[s].long()] * rows.values[s]).sum() for s in spans]) if spans else query[:0]
