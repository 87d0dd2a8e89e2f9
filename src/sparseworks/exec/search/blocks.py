"""Lists cut into blocks of documents that are alike, each with a summary: what Seismic opens in the order of a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from sparseworks.core.errors import BudgetError, KernelError
from sparseworks.core.select_bounded import select_bounded
from sparseworks.exec.native import native
from sparseworks.exec.search.forward import LANES, Forward, Ranked, addresses, fits, room
from sparseworks.exec.search.group import grouped
from sparseworks.exec.search.impacts import kept_postings, scores_of, strongest_postings
from sparseworks.exec.search.lists import Lists
from sparseworks.exec.search.rows import Rows, dense

_MOST_TERMS = 64
_AT_ONCE = 2**24  # entries of summaries that are made room for at once


@dataclass(frozen=True)
class Blocks:
    """Block b of list t, first[t] <= b < first[t+1], holds `posting[of[b]:of[b+1]]`; its summary is least[b] + step[b] * code.

    Attributes:
        first: int64 (width + 1).
        of: int64 (blocks + 1).
        posting: int32 documents.
        summary: int64 (blocks + 1): where its terms and codes begin; 16 entries more follow the last.
        terms: uint16, or int32 where the width is above 65536.
        codes: uint8, rounded up.
        least, step: float32 (blocks).
    """

    first: Int[Tensor, " width+1"]
    of: Int[Tensor, " blocks+1"]
    posting: Int[Tensor, " kept"]
    summary: Int[Tensor, " blocks+1"]
    terms: Shaped[Tensor, " entries+16"]
    codes: UInt8[Tensor, " entries+16"]
    least: Float[Tensor, " blocks"]
    step: Float[Tensor, " blocks"]

    @classmethod
    def build(
        cls,
        forward: Forward,
        lists: Lists,
        *,
        postings: int = 2000,
        fraction: float = 0.1,
        mass: float = 0.4,
        geometric: bool = True,
        least: int = 3,
        strong: int = 15,
        seed: int = 0,
        threads: int | None = None,
    ) -> Blocks:
        """Static pruning, blocking, summaries (Bruch et al., 2024, arXiv 2404.18812).

        Args:
            postings: stay a list on average (`kept_postings`).
            fraction: of a list's documents that are drawn as centroids; blocks hold 1 / fraction documents on average.
            mass: share of a summary's sum whose largest terms are kept; at 1 a summary is a bound.
            geometric: documents go to the centroid of largest inner product; otherwise neighbours in value share a block.
            least: smallest block; documents of smaller ones go to their next centroid. The released code dissolves blocks of up to two.
            strong: terms of a document that are compared with centroids.

        Raises:
            BudgetError: `fraction` or `mass` not in (0, 1], or `least` or `strong` below 1.
            KernelError: negative values.
        """
        if not (0 < fraction <= 1 and 0 < mass <= 1) or least < 1 or strong < 1:
            raise BudgetError(f"Needs 0 < fraction, mass <= 1 <= least, strong: {fraction}, {mass}, {least}, {strong}.")
        if lists.least < 0:
            raise KernelError("Summaries are maxima: values must not be negative; search all postings.")
        list_ptr, posting, _ = strongest_postings(lists, kept_postings(lists, postings), threads)
        if geometric:
            starts = grouped(forward, list_ptr, posting, fraction, least, strong, seed, threads)
        else:
            place = torch.arange(len(posting)) - torch.repeat_interleave(list_ptr[:-1], list_ptr.diff())
            starts = place % math.ceil(1 / fraction) == 0
        begin = starts.nonzero().flatten()
        of = torch.cat([begin, torch.tensor([len(posting)])])
        return cls(torch.searchsorted(begin, list_ptr), of, posting, *summaries(forward, of, posting, mass, threads))

    def search(
        self,
        forward: Forward,
        queries: Rows,
        k: int,
        allowed: Bool[Tensor, " documents"] | None = None,
        threads: int | None = None,
        *,
        cut: int = 10,
        heap: float = 0.8,
    ) -> Ranked:
        """About the k largest <query, document>, scores exact: blocks of the `cut` strongest terms' lists in the order of
        <query, summary>, while that is at least `heap` times the k-th best score.

        All lists' blocks are opened in one order, where the official code goes list by list.

        Raises:
            BudgetError: k, `cut` or `heap` out of bounds.
            ShapeError: as `exec.search.forward.room`.
        """
        ranked, arguments = room(queries, k, len(forward), forward.width, allowed, threads)
        if not 1 <= cut <= _MOST_TERMS or not 0 <= heap <= 1:
            raise BudgetError(f"Needs 1 <= cut <= {_MOST_TERMS} and 0 <= heap <= 1, got {cut} and {heap}.")
        if not k or not len(queries):
            return ranked
        module = native()
        if module is None:
            return self._reference(forward, queries, ranked, allowed, cut, heap)
        mask = fits(allowed)
        parts = (self.first, self.of, self.posting, self.summary, self.terms, self.codes, self.least, self.step)
        module.search_seismic(
            *arguments, *forward.arguments(), *addresses(*parts), cut, heap, *addresses(mask, ranked.opened)
        )
        return ranked

    def bounds(self, query: Float[Tensor, " width"]) -> Float[Tensor, " blocks"]:
        """<query, summary> of every block."""
        n = int(self.summary[-1])
        block = torch.repeat_interleave(torch.arange(len(self.least)), self.summary.diff())
        value = self.least[block] + self.step[block] * self.codes[:n].float()
        return torch.zeros(len(self.least)).index_add(0, block, query[self.terms[:n].long()] * value)

    def _reference(
        self, forward: Forward, queries: Rows, ranked: Ranked, allowed: Tensor | None, cut: int, heap: float
    ) -> Ranked:
        rows = forward.rows()
        for q in range(len(queries)):
            query = dense(queries, q, q + 1)[0]
            order = query.argsort(descending=True, stable=True)[:cut]
            lists = order[query[order] > 0].tolist()
            chosen = torch.cat([torch.arange(int(self.first[t]), int(self.first[t + 1])) for t in lists] or [order[:0]])
            seen = torch.zeros(len(forward), dtype=torch.bool)
            scored = 0

            def block(g: int, query: Tensor = query, chosen: Tensor = chosen, seen: Tensor = seen):
                nonlocal scored
                b = int(chosen[g])
                ids = self.posting[int(self.of[b]) : int(self.of[b + 1])].long()
                ids = ids[~seen[ids]]
                seen[ids] = True
                ids = ids if allowed is None else ids[allowed[ids].bool()]
                scored += len(ids)
                return ids, scores_of(rows, query, ids)

            # A summary over `heap` stands for the bound that it is not where its mass is below 1.
            estimate = self.bounds(query)[chosen] / max(heap, 1e-30)
            ids, values, _ = select_bounded(estimate, block, ranked.ids.shape[1])
            ranked.ids[q, : len(ids)], ranked.scores[q, : len(ids)] = ids, values
            assert ranked.opened is not None
            ranked.opened[q] = scored
        return ranked


def summaries(
    forward: Forward, of: Tensor, posting: Tensor, mass: float, threads: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pointers, terms, codes, least values and steps of the summaries, made in parts that fit memory."""
    blocks, module = len(of) - 1, native()
    counts = torch.zeros(blocks, dtype=torch.long)
    low, step = torch.zeros(blocks), torch.zeros(blocks)
    entries = torch.cat([torch.zeros(1, dtype=torch.long), forward.ptr.diff()[posting.long()].cumsum(0)])[of]
    terms, codes, begin = [], [], 0
    while begin < blocks:
        end = int(torch.searchsorted(entries, entries[begin] + _AT_ONCE, right=True)) - 1
        end = min(max(end, begin + 1), blocks)
        place = (entries[begin : end + 1] - entries[begin]).contiguous()
        if module is None:
            made = [_summary(forward, posting[int(of[b]) : int(of[b + 1])], mass) for b in range(begin, end)]
            for i, (t, c, least, width) in enumerate(made, start=begin):
                counts[i], low[i], step[i] = len(t), least, width
                terms.append(t)
                codes.append(c)
        else:
            t = torch.empty(int(place[-1]), dtype=torch.int32)
            c = torch.empty(int(place[-1]), dtype=torch.uint8)
            out = (counts[begin:end], low[begin:end], step[begin:end])
            module.search_summaries(
                *forward.arguments(), *addresses(of, posting), begin, end, *addresses(place), mass, *addresses(t, c, *out),
                threads or torch.get_num_threads(),
            )  # fmt: skip
            n = int(counts[begin:end].sum())
            terms.append(t[:n].clone() if forward.wide else t[:n].to(torch.uint16))
            codes.append(c[:n].clone())
        begin = end
    kind = torch.int32 if forward.wide else torch.uint16
    pad = torch.zeros(LANES, dtype=torch.int32)
    ptr = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    return (
        ptr, torch.cat([*(t.int() for t in terms), pad]).to(kind) if module is None else torch.cat([*terms, pad.to(kind)]),
        torch.cat([*codes, pad.to(torch.uint8)]), low, step,
    )  # fmt: skip


def _summary(forward: Forward, documents: Tensor, mass: float) -> tuple[Tensor, Tensor, float, float]:
    most: dict[int, float] = {}
    for d in documents.tolist():
        at = slice(int(forward.ptr[d]), int(forward.ptr[d + 1]))
        for term, value in zip(forward.terms[at].tolist(), forward.values[at].tolist(), strict=True):
            most[term] = max(most.get(term, 0.0), value)
    ordered = sorted(((-v, t) for t, v in most.items() if v > 0))
    total, held, kept = sum(-v for v, _ in ordered), 0.0, []
    for value, term in ordered:
        if mass < 1 and held >= mass * total:
            break
        kept.append((term, -value))
        held -= value
    if not kept:
        return torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.uint8), 0.0, 0.0
    least, step = kept[-1][1], (kept[0][1] - kept[-1][1]) / 255 * 1.000001
    kept.sort()
    codes = [min(math.ceil((v - least) / step), 255) if step else 0 for _, v in kept]
    return torch.tensor([t for t, _ in kept], dtype=torch.int32), torch.tensor(codes, dtype=torch.uint8), least, step
