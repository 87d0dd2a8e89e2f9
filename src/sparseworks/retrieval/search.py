"""The ways to search an index: what each builds beside the rows and lists, and how it is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from jaxtyping import Bool
from torch import Tensor

from sparseworks.core.config import NOUNS
from sparseworks.core.errors import KernelError
from sparseworks.core.registry import Registry
from sparseworks.exec.search import Blocks, Forward, Impacts, Lists, Ranked, Rows


@dataclass(frozen=True)
class Searched:
    """The documents that are searched: as rows, as lists, and what a search has built beside them."""

    forward: Forward
    lists: Lists
    built: Any = None


class Search(ABC):
    """The k largest inner products of a query with documents, all of them or nearly all.

    Attributes:
        exact: whether nothing is ever missed.
        BUILD: fields that change what is built; the others only change how it is asked.
    """

    exact: ClassVar[bool] = True
    BUILD: ClassVar[tuple[str, ...]] = ()

    def refuses(self, lists: Lists, queries: Rows | None = None) -> str | None:
        """Why these documents or queries cannot be searched this way, in a sentence."""
        del lists, queries
        return None

    def build(self, forward: Forward, lists: Lists, threads: int | None = None) -> Any:
        """What it needs beside rows and lists."""
        del forward, lists, threads

    @abstractmethod
    def __call__(
        self,
        source: Searched,
        queries: Rows,
        k: int,
        allowed: Bool[Tensor, " documents"] | None = None,
        threads: int | None = None,
    ) -> Ranked:
        """The k best of each query among the allowed documents, best first, ties to the lower document.

        Raises:
            ShapeError, BudgetError, KernelError: as the kernels.
        """

    @property
    def building(self) -> tuple[Any, ...]:
        """Searches with equal ones share what is built."""
        return (type(self).__name__, *(getattr(self, name) for name in self.BUILD))


SEARCHES: Registry[type[Search]] = Registry("search")
NOUNS["search"] = (Search, SEARCHES)


@SEARCHES.register("postings")
@dataclass(frozen=True)
class Postings(Search):
    """s_d = sum_t q_t w_td over every posting of the query's terms, one range of documents after the other."""

    def __call__(
        self,
        source: Searched,
        queries: Rows,
        k: int,
        allowed: Bool[Tensor, " documents"] | None = None,
        threads: int | None = None,
    ) -> Ranked:
        """All postings."""
        return source.lists.search(queries, k, allowed, threads)


@dataclass(frozen=True)
class _Bounded(Search):
    blocks: ClassVar[bool] = False

    def refuses(self, lists: Lists, queries: Rows | None = None) -> str | None:
        """Bounds hold for weights and values that are not negative."""
        signed = lists.least < 0 or (queries is not None and bool((queries.values < 0).any()))
        return "Its bounds need weights and values that are not negative: search all postings." if signed else None

    def __call__(
        self,
        source: Searched,
        queries: Rows,
        k: int,
        allowed: Bool[Tensor, " documents"] | None = None,
        threads: int | None = None,
    ) -> Ranked:
        """Document at a time."""
        return source.lists.search_bounded(queries, k, allowed, threads, blocks=self.blocks)


@SEARCHES.register("max_score")
@dataclass(frozen=True)
class MaxScore(_Bounded):
    """Lists in order of q_t max_d w_td: those whose bounds together stay below the k-th score are only looked into."""


@SEARCHES.register("block_max_wand")
@dataclass(frozen=True)
class BlockMaxWand(_Bounded):
    """WAND's pivot over lists in order of document; a pivot is scored if sum_t q_t max over its blocks of 64 postings beats the k-th score."""

    blocks: ClassVar[bool] = True


class _Pruned(Search):
    exact: ClassVar[bool] = False

    def refuses(self, lists: Lists, queries: Rows | None = None) -> str | None:
        """Pruning by value needs values that are not negative."""
        del queries
        return "It prunes by value, which must not be negative: search all postings." if lists.least < 0 else None


@SEARCHES.register("posting_blocks")
@dataclass(frozen=True)
class PostingBlocks(_Pruned):
    """Blocks of the `cut` strongest terms' pruned lists, opened while <q, summary> >= heap * k-th score; documents scored exactly.

    Attributes:
        postings: stay a list on average, 3500 as released; mass: share of a summary's sum that is kept; fraction: centroids over documents.
        geometric: blocks of the nearest of random centroids; otherwise of neighbours in value.
        cut, heap: terms asked; factor on the k-th score.
    """

    BUILD: ClassVar[tuple[str, ...]] = ("postings", "fraction", "mass", "geometric", "seed")

    postings: int = 3500
    fraction: float = 0.1
    mass: float = 0.4
    geometric: bool = True
    cut: int = 10
    heap: float = 0.8
    seed: int = 0

    def build(self, forward: Forward, lists: Lists, threads: int | None = None) -> Blocks:
        """Pruned lists in blocks with summaries."""
        refused = self.refuses(lists)
        if refused:
            raise KernelError(refused)
        wanted = {name: getattr(self, name) for name in self.BUILD}
        return Blocks.build(forward, lists, **wanted, threads=threads)

    def __call__(
        self,
        source: Searched,
        queries: Rows,
        k: int,
        allowed: Bool[Tensor, " documents"] | None = None,
        threads: int | None = None,
    ) -> Ranked:
        """Blocks in the order of their bounds."""
        return source.built.search(source.forward, queries, k, allowed, threads, cut=self.cut, heap=self.heap)


@SEARCHES.register("two_stage")
@dataclass(frozen=True)
class TwoStage(_Pruned):
    """The strongest postings of the `terms` strongest terms vote in whole numbers; the best `candidates` are scored exactly."""

    BUILD: ClassVar[tuple[str, ...]] = ("postings",)

    postings: int = 4000
    terms: int = 12
    candidates: int = 200

    def build(self, forward: Forward, lists: Lists, threads: int | None = None) -> Impacts:
        """Impacts of the strongest postings."""
        del forward, threads
        return Impacts.of(lists, self.postings)

    def __call__(
        self,
        source: Searched,
        queries: Rows,
        k: int,
        allowed: Bool[Tensor, " documents"] | None = None,
        threads: int | None = None,
    ) -> Ranked:
        """Votes, then scores."""
        candidates = max(self.candidates, k)
        return source.built.search(
            source.forward, queries, k, allowed, threads, terms=self.terms, candidates=candidates
        )


BUILT: Mapping[str, type] = {"posting_blocks": Blocks, "two_stage": Impacts}


def built_tensors(built: Any) -> dict[str, Any]:
    """The fields of what was built: tensors and whole numbers."""
    return {f.name: getattr(built, f.name) for f in fields(built)}
