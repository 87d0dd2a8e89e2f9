"""Documents by term: the lists that exact search adds up, and the bounds by which MaxScore and Block-Max WAND skip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sparseworks.core.errors import BudgetError, KernelError
from sparseworks.core.select_bounded import select_bounded
from sparseworks.exec.native import native
from sparseworks.exec.search.forward import Forward, Ranked, addresses, fits, room
from sparseworks.exec.search.rows import Rows, dense

RANGE = 32768
BLOCK = 64


@dataclass(frozen=True)
class Lists:
    """List (t, r) holds the documents `r * size + local` of term t in range r at `[ptr[t * ranges + r], ptr[t * ranges + r + 1])`.

    Attributes:
        ptr: int64 (width * ranges + 1).
        local: uint16, rising in a list.
        values: float32.
        documents, width, size: documents, terms, documents a range (at most 65536).
    """

    ptr: Int[Tensor, " lists+1"]
    local: Shaped[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    documents: int
    width: int
    size: int = RANGE

    @property
    def ranges(self) -> int:
        """Ranges of documents."""
        return -(-self.documents // self.size)

    @classmethod
    def of(cls, forward: Forward, size: int = RANGE) -> Lists:
        """Turned from rows: one pass to count, one to place.

        Raises:
            BudgetError: `size` out of bounds.
        """
        if not 1 <= size <= 65536:
            raise BudgetError(f"A range holds 1 to 65536 documents, not {size}.")
        n, module = forward.entries, native()
        ranges = -(-len(forward) // size)
        if module is None:
            document = torch.repeat_interleave(torch.arange(len(forward)), forward.ptr.diff())
            segment = forward.terms[:n].long() * ranges + document // size
            order = segment.argsort(stable=True)
            counts = torch.bincount(segment, minlength=forward.width * ranges)
            ptr = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
            local = (document % size)[order].to(torch.uint16)
            return cls(ptr, local, forward.values[:n][order], len(forward), forward.width, size)
        ptr = torch.empty(forward.width * ranges + 1, dtype=torch.long)
        local, values = torch.empty(n, dtype=torch.uint16), torch.empty(n)
        module.search_invert(*forward.arguments(), size, ranges, *addresses(ptr, local, values))
        return cls(ptr, local, values, len(forward), forward.width, size)

    @cached_property
    def least(self) -> float:
        """The smallest value, 0 if there is none below."""
        return min(float(self.values.min()), 0.0) if len(self.values) else 0.0

    @cached_property
    def list_max(self) -> Float[Tensor, " lists"]:
        """The largest value of each list, 0 of an empty one: never below any value of it."""
        return torch.segment_reduce(self.values, "max", lengths=self.ptr.diff(), initial=0.0)

    @cached_property
    def blocks(self) -> tuple[Int[Tensor, " lists+1"], Float[Tensor, " blocks"]]:
        """Where the blocks of 64 postings of each list begin, and the largest value of each."""
        lengths = self.ptr.diff()
        count = -(-lengths // BLOCK)
        ptr = torch.cat([torch.zeros(1, dtype=torch.long), count.cumsum(0)])
        each = torch.full((int(ptr[-1]),), BLOCK)
        some = count > 0
        each[ptr[1:][some] - 1] = (lengths - (count - 1) * BLOCK)[some]
        return ptr, torch.segment_reduce(self.values, "max", lengths=each, initial=0.0)

    def search(
        self, queries: Rows, k: int, allowed: Bool[Tensor, " documents"] | None = None, threads: int | None = None
    ) -> Ranked:
        """Every posting of the query's terms: the k largest <query, document>; documents that share no term score 0.

        Raises:
            ShapeError, BudgetError, KernelError: as `exec.search.forward.room`, and `Rows`.
        """
        ranked, arguments = room(queries, k, self.documents, self.width, allowed, threads)
        module = native()
        if not k or not len(queries):
            return Ranked(*ranked.found)
        if module is None:
            return self._reference(queries, ranked, allowed)
        mask = fits(allowed)
        buffers = addresses(self.ptr, self.local, self.values)
        module.search_exact(*arguments, *buffers, self.documents, self.ranges, self.size, *addresses(mask))
        return Ranked(*ranked.found)

    def search_bounded(
        self,
        queries: Rows,
        k: int,
        allowed: Bool[Tensor, " documents"] | None = None,
        threads: int | None = None,
        *,
        blocks: bool = False,
    ) -> Ranked:
        """The same, document at a time, leaving out what the bounds of lists, or of blocks of them, prove not to be among the k.

        MaxScore (Turtle and Flood, 1995): lists whose bounds together cannot beat the k-th score are only looked into.
        `blocks`: Block-Max WAND (Ding and Suel, 2011). Only documents that share a term are found.

        Raises:
            KernelError: a weight or value is negative.
            ShapeError, BudgetError: as `search`.
        """
        ranked, arguments = room(queries, k, self.documents, self.width, allowed, threads)
        if self.least < 0 or bool((queries.values < 0).any()):
            raise KernelError("Bounds of lists need weights and values that are not negative; search all postings.")
        if not k or not len(queries):
            return ranked
        module = native()
        if module is None:
            return self._bounded_reference(queries, ranked, allowed)
        mask, parts = fits(allowed), self.blocks if blocks else (None, None)
        buffers = addresses(self.ptr, self.local, self.values)
        module.search_bounded(
            *arguments, *buffers, self.documents, self.ranges, self.size, *addresses(mask, self.list_max, *parts), BLOCK,
            *addresses(ranked.opened),
        )  # fmt: skip
        return ranked

    def document_of(self) -> Int[Tensor, " entries"]:
        """The document of each posting."""
        range_of = torch.repeat_interleave(torch.arange(len(self.ptr) - 1), self.ptr.diff()) % max(self.ranges, 1)
        return range_of * self.size + self.local.long()

    def term_of(self) -> Int[Tensor, " entries"]:
        """The term of each posting."""
        return torch.repeat_interleave(torch.arange(len(self.ptr) - 1), self.ptr.diff()) // max(self.ranges, 1)

    def _reference(self, queries: Rows, ranked: Ranked, allowed: Tensor | None) -> Ranked:
        document, term = self.document_of(), self.term_of()
        for q in range(len(queries)):
            weights = dense(queries, q, q + 1)[0]
            scores = torch.zeros(self.documents).index_add(0, document, weights[term] * self.values)
            put(ranked, q, scores, torch.arange(self.documents), allowed)
        return Ranked(*ranked.found)

    def _bounded_reference(self, queries: Rows, ranked: Ranked, allowed: Tensor | None) -> Ranked:
        """By `core.select_bounded`: groups of neighbouring documents, bounded by the largest value of each term in them."""
        document, term = self.document_of(), self.term_of()
        groups = -(-self.documents // BLOCK)
        most = torch.zeros(groups * self.width)
        most.scatter_reduce_(0, document // BLOCK * self.width + term, self.values, "amax")
        for q in range(len(queries)):
            weights = dense(queries, q, q + 1)[0]
            scores = torch.zeros(self.documents).index_add(0, document, weights[term] * self.values)
            bounds = most.view(groups, self.width) @ weights * (1 + 1e-5)

            def group(g: int, scores: Tensor = scores) -> tuple[Tensor, Tensor]:
                ids = torch.arange(g * BLOCK, min((g + 1) * BLOCK, self.documents))
                ids = ids[scores[ids] > 0]
                ids = ids if allowed is None else ids[allowed[ids].bool()]
                return ids, scores[ids]

            ids, values, seen = select_bounded(bounds, group, ranked.ids.shape[1])
            ranked.ids[q, : len(ids)], ranked.scores[q, : len(ids)] = ids, values
            assert ranked.opened is not None
            ranked.opened[q] = min(seen.opened * BLOCK, self.documents)
        return ranked


def put(ranked: Ranked, q: int, scores: Tensor, ids: Tensor, allowed: Tensor | None = None) -> None:
    """The best of these as the answers to query q, ties to the lower id; `ids` rise."""
    if allowed is not None:
        kept = allowed[ids].bool()
        scores, ids = scores[kept], ids[kept]
    order = scores.argsort(descending=True, stable=True)[: ranked.ids.shape[1]]
    ranked.scores[q, : len(order)], ranked.ids[q, : len(order)] = scores[order], ids[order]
