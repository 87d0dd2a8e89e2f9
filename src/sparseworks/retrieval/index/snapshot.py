"""What a reader holds: the segments of one generation. Nothing that is added, deleted or merged later changes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, KernelError, ShapeError
from sparseworks.exec.search.rows import Rows, best
from sparseworks.retrieval.index.manifest import Manifest
from sparseworks.retrieval.index.names import hashed
from sparseworks.retrieval.index.segment import Metadata, Segment
from sparseworks.retrieval.method import IndexMethod
from sparseworks.retrieval.search import Postings, Search
from sparseworks.retrieval.vectors import SparseVectors

Filter = Collection[str] | Mapping[str, Any] | Callable[[Metadata], bool]

_DELETED = 0.2  # share of deleted documents above which an approximate search is no longer what was calibrated
_EXACT = Postings()


@dataclass(frozen=True)
class Hits:
    """Answers to queries.

    Attributes:
        ids: for each query the ids found, best first; ties to the document added first.
        scores: float32 (queries, k), -inf beyond what was found. Only documents of positive score are found.
        positions: int64 (queries, k) within the snapshot, -1 beyond.
        exact: nothing was missed.
        opened: documents scored in full a query, where the searches count them; those whose postings were added up count all.
        documents: how many could be found.
        how: the search of each segment.
    """

    ids: list[list[str]]
    scores: Float[Tensor, "queries k"]
    positions: Int[Tensor, "queries k"]
    exact: bool
    opened: Int[Tensor, " queries"]
    documents: int
    how: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def ranked(self, query: int = 0) -> list[tuple[str, float]]:
        """(id, score) of one query, best first."""
        return list(zip(self.ids[query], self.scores[query].tolist(), strict=False))


class Snapshot:
    """The documents of one generation of an index.

    Attributes:
        manifest: what it consists of.
        segments: open.
    """

    def __init__(self, manifest: Manifest, segments: tuple[Segment, ...]) -> None:
        self.manifest, self.segments = manifest, segments

    def __len__(self) -> int:
        return sum(s.documents - s.deleted for s in self.manifest.segments)

    def ids(self) -> list[str]:
        """Ids of all documents, in the order they were added."""
        names = []
        for s in self.segments:
            every = s.names.all()
            names += every if s.live is None else [every[i] for i in s.live.nonzero().flatten().tolist()]
        return names

    def metadata(self, position: int) -> dict[str, Any]:
        """Metadata of the document at a position of `Hits`."""
        for s in self.segments:
            if position < len(s):
                return s.metadata_of(position)
            position -= len(s)
        raise ShapeError(f"There is no document {position} beyond the last.")

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        recall: float | None = None,
        filter: Filter | None = None,
        threads: int | None = None,
        method: str | IndexMethod | None = None,
    ) -> Hits:
        """The k largest <query, document> among documents that share a term.

        Args:
            queries: `SparseVectors`, or what `SparseVectors.of` takes.
            recall: None is exact. Otherwise, in each segment that was calibrated for it (`Index.merge`), the fastest search that
                reached this recall; in others exact.
            filter: ids, a mapping of metadata (field: value, or list of values), or a predicate on metadata. Exact search.
            threads: default torch's.
            method: a method of indexes instead; what it needs is built by `Index.merge(methods=...)`.

        Raises:
            ShapeError: queries of another width.
            BudgetError: k, recall or threads out of bounds.
            KernelError: the method is not built, or refuses.
        """
        rows = SparseVectors.of(queries, self.manifest.width)
        if rows.width != self.manifest.width:
            raise ShapeError(f"This index has {self.manifest.width} terms, the queries {rows.width}.")
        if k < 1 or (recall is not None and not 0 < recall <= 1):
            raise BudgetError(f"Needs k >= 1 and 0 < recall <= 1, got {k} and {recall}.")
        asked = IndexMethod.of(method).search if method is not None else None
        scores, ids, how = [torch.empty(len(rows), 0)], [torch.empty(len(rows), 0, dtype=torch.long)], []
        opened = torch.zeros(len(rows), dtype=torch.long)
        start, exact = 0, True
        masks = self._allowed(filter)
        for segment, allowed in zip(self.segments, masks, strict=True):
            search = asked or _chosen(segment, k, recall if filter is None else None, rows)
            found, seen = _search(segment, search, rows, min(k, len(segment)), allowed, threads)
            scores.append(found[0])
            ids.append(torch.where(found[1] >= 0, found[1] + start, -1))
            opened += seen
            how.append(type(search).__name__)
            exact &= search.exact
            start += len(segment)
        top, at = best(torch.cat(scores, 1), k)
        positions = torch.cat(ids, 1).gather(1, at)
        if top.shape[1] < k:
            empty = k - top.shape[1]
            top = torch.nn.functional.pad(top, (0, empty), value=-torch.inf)
            positions = torch.nn.functional.pad(positions, (0, empty), value=-1)
        return Hits(self._names(positions), top, positions, exact, opened, self._findable(masks), tuple(how))

    def positions(self, ids: Collection[str]) -> list[dict[str, int]]:
        """For each segment, where the live ones among these ids are."""
        asked = [str(i) for i in ids]
        hashes = hashed(asked)
        return [s.positions(asked, hashes) for s in self.segments]

    def _allowed(self, filter: Filter | None) -> list[Bool[Tensor, " documents"] | None]:
        if filter is None:
            return [s.live for s in self.segments]
        if callable(filter) or isinstance(filter, Mapping):
            wanted = filter if callable(filter) else _equal(filter)
            masks = [s.matching(wanted) for s in self.segments]
        else:
            if isinstance(filter, str):
                raise ShapeError("A filter of ids is a collection of them, not one text.")
            masks = []
            for s, found in zip(self.segments, self.positions(filter), strict=True):
                mask = torch.zeros(len(s), dtype=torch.bool)
                mask[list(found.values())] = True
                masks.append(mask)
        return [m if s.live is None else m & s.live for m, s in zip(masks, self.segments, strict=True)]

    def _findable(self, masks: list[Tensor | None]) -> int:
        return sum(len(s) if m is None else int(m.sum()) for m, s in zip(masks, self.segments, strict=True))

    def _names(self, positions: Tensor) -> list[list[str]]:
        starts = torch.tensor([0, *(len(s) for s in self.segments)]).cumsum(0)
        of = torch.searchsorted(starts, positions, right=True) - 1
        local = positions - starts[of.clamp(min=0)]
        rows = zip(of.tolist(), local.tolist(), positions.tolist(), strict=True)
        return [[self.segments[s].names[p] for s, p, g in zip(*row, strict=True) if g >= 0] for row in rows]


def _search(
    segment: Segment, search: Search, rows: Rows, k: int, allowed: Tensor | None, threads: int | None
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    source = segment.source(search)
    if source is None:
        raise KernelError(f"{type(search).__name__} has nothing built here: merge with methods=[...] first.")
    queries = segment.local(rows)
    refused = search.refuses(segment.lists, queries)
    if refused:
        raise KernelError(refused)
    ranked = search(source, queries, k, allowed, threads)
    none = ~(ranked.scores > 0)
    opened = torch.tensor(len(segment)) if ranked.opened is None else ranked.opened
    return (ranked.scores.masked_fill(none, -torch.inf), ranked.ids.masked_fill(none, -1)), opened


def _chosen(segment: Segment, k: int, recall: float | None, rows: Rows) -> Search:
    """The calibrated search for at least this k and recall, the nearest to both; else exact."""
    if recall is None or segment.entry.deleted > _DELETED * len(segment) or bool((rows.values < 0).any()):
        return _EXACT
    fitting = [s for s in segment.settings if s.k >= k and s.recall >= recall]
    return min(fitting, key=lambda s: (s.k, s.recall)).search if fitting else _EXACT


def _equal(wanted: Mapping[str, Any]) -> Callable[[Metadata], bool]:
    lists = {n: list(v) if isinstance(v, list | tuple | set | frozenset) else [v] for n, v in wanted.items()}
    return lambda metadata: all(n in metadata and metadata[n] in values for n, values in lists.items())
