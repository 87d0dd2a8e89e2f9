"""Which search reaches a recall fastest on these documents: measured on queries, once, when an index is merged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import sqrt
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.exec.search import Forward, Lists, Rows
from sparseworks.retrieval.index.segment import Setting
from sparseworks.retrieval.search import PostingBlocks, Postings, Search, Searched, TwoStage

RECALLS = (0.9, 0.95, 0.99)
_SURE = 2.0  # standard errors by which the recall on calibration queries must be above what is asked

BLOCKS = tuple(
    PostingBlocks(postings=2000, cut=c, heap=h) for c, h in product((3, 5, 8, 12, 20, 40), (1.0, 0.9, 0.8, 0.7))
)
STAGES = tuple(TwoStage(terms=t, candidates=c) for t, c in product((5, 8, 12, 20, 40), (50, 100, 200, 500, 1000)))
CANDIDATES: tuple[Search, ...] = (*BLOCKS, *STAGES)


@dataclass(frozen=True)
class Tried:
    """A search on calibration queries: mean recall at k, its standard error, seconds for all queries."""

    search: Search
    recall: float
    error: float
    seconds: float

    def reaches(self, recall: float) -> bool:
        """Whether the recall is met for sure, and not only on these queries."""
        return self.recall - _SURE * self.error >= recall


def recall_at(found: Int[Tensor, "queries k"], truth: Ranks) -> Float[Tensor, " queries"]:
    """Share of the true k that were found, of those that there are; a document of equal score counts as the true one."""
    scores, ids = truth
    there = (scores > 0).sum(1)
    met = ((found.unsqueeze(2) == ids.unsqueeze(1)).any(1) & (scores > 0)).sum(1)
    return (met / there.clamp(min=1)).where(there > 0, 1.0)


Ranks = tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]


def build(forward: Forward, lists: Lists, searches: Sequence[Search], threads: int | None) -> dict[Search, Any]:
    """What these searches need, each kind once."""
    built: dict[Search, Any] = {}
    for search in searches:
        known = any(s.building == search.building for s in built)
        if search.BUILD and not known and search.refuses(lists) is None:
            built[search] = search.build(forward, lists, threads)
    return built


def tried(
    forward: Forward,
    lists: Lists,
    queries: Rows,
    k: int,
    built: dict[Search, Any],
    searches: Sequence[Search],
    threads: int | None,
) -> Iterator[Tried]:
    """Every search that has what it needs, the exact one first."""
    parts = {s.building: p for s, p in built.items()}
    truth = lists.search(queries, k, threads=threads).found
    for search in (Postings(), *searches):
        if search.refuses(lists, queries) or (search.BUILD and search.building not in parts):
            continue
        source = Searched(forward, lists, parts.get(search.building))
        search(source, queries, k, threads=threads)  # pages come into memory
        start = time.perf_counter()
        ranked = search(source, queries, k, threads=threads)
        seconds = time.perf_counter() - start
        got = recall_at(ranked.ids, truth)
        error = float(got.std()) / sqrt(len(got)) if len(got) > 1 else 0.0
        yield Tried(search, float(got.mean()), error, seconds)


def settings_of(outcomes: Sequence[Tried], recalls: Sequence[float], k: int) -> list[Setting]:
    """For each recall the fastest search that reaches it; none where exact search is the fastest."""
    chosen = []
    for recall in recalls:
        fitting = [o for o in outcomes if o.search.exact or o.reaches(recall)]
        best = min(fitting, key=lambda o: o.seconds)
        chosen.append(Setting(recall, k, best.search, best.recall))
    return chosen


def kept(built: dict[Search, Any], settings: Sequence[Setting]) -> dict[Search, Any]:
    """What the chosen searches need."""
    wanted = {s.search.building for s in settings}
    return {s: p for s, p in built.items() if s.building in wanted}


def sized(searches: Sequence[Search], documents: int) -> tuple[Search, ...]:
    """Lists kept no longer than a quarter of the documents: of few documents there is nothing to gain from more."""
    most = max(documents // 4, 1)
    return tuple(
        replace(s, postings=min(s.postings, most)) if isinstance(s, PostingBlocks | TwoStage) else s for s in searches
    )
