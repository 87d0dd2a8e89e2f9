"""The kinds of published methods of retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from jaxtyping import Bool
from torch import Tensor

from sparseworks.core.errors import KernelError
from sparseworks.core.published import METHODS, Published, Source
from sparseworks.core.routine import Routine
from sparseworks.exec.search import Forward, Lists, Ranked
from sparseworks.retrieval.search import Search, Searched
from sparseworks.retrieval.vectors import SparseVectors


@dataclass(frozen=True)
class RetrievalRoutine(Routine):
    """An algorithm of retrieval that is called with operands of its own: fusion, feedback, an index over labels."""

    family: ClassVar[str] = "retrieval"
    kind: ClassVar[str] = "routines of retrieval"
    used_by: ClassVar[str] = "sw.method(name)(operands)"


@dataclass(frozen=True)
class IndexMethod(Published):
    """A way to find the largest inner products of sparse vectors.

    Attributes:
        search: what is built and how it is asked.
    """

    family: ClassVar[str] = "retrieval"
    kind: ClassVar[str] = "index"
    used_by: ClassVar[str] = "Index.search(queries, k, method=name), sw.method(name).build(vectors)"
    PARTS: ClassVar[Mapping[str, str]] = {"search": "search"}

    search: Search

    def with_(self, **changes: Any) -> IndexMethod:
        """A changed copy; fields of the search may be named directly: `sw.method("seismic", cut=8)`.

        Raises:
            RecipeError: unknown option.
        """
        known = {f.name for f in fields(self.search)}  # type: ignore[arg-type]
        inner = {name: value for name, value in changes.items() if name in known}
        changed = super().with_(**{k: v for k, v in changes.items() if k not in inner})
        return replace(changed, search=replace(changed.search, **inner)) if inner else changed  # type: ignore[type-var]

    def build(self, vectors: Any, width: int | None = None, *, threads: int | None = None) -> BuiltIndex:
        """An index in memory of documents 0 .. n-1.

        Args:
            vectors: `SparseVectors`, a scipy matrix, `Codes`, or `(ptr, indices, values)` with `width`.

        Raises:
            ShapeError, NonFiniteError: as `SparseVectors`.
            KernelError: these vectors cannot be searched this way.
        """
        forward = Forward.of(SparseVectors.of(vectors, width))
        lists = Lists.of(forward)
        refused = self.search.refuses(lists)
        if refused:
            raise KernelError(f"{self.name} refuses these vectors. {refused}")
        return BuiltIndex(self.search, Searched(forward, lists, self.search.build(forward, lists, threads)))


@dataclass(frozen=True)
class BuiltIndex:
    """Documents ready to be searched in one way."""

    by: Search
    source: Searched

    def search(
        self,
        queries: Any,
        k: int,
        allowed: Bool[Tensor, " documents"] | None = None,
        threads: int | None = None,
        **changes: Any,
    ) -> Ranked:
        """The k best of each query; `changes` are options of the search that do not change what was built.

        Raises:
            ShapeError, BudgetError, KernelError: as `Search`.
        """
        by = replace(self.by, **changes) if changes else self.by  # type: ignore[type-var]
        if by.building != self.by.building:
            raise KernelError(f"{', '.join(by.BUILD)} are fixed when an index is built. Build another.")
        rows = SparseVectors.of(queries, self.source.forward.width)
        refused = by.refuses(self.source.lists, rows)
        if refused:
            raise KernelError(refused)
        return by(self.source, rows, k, allowed, threads)


def add_index(name: str, search: Search, source: Source, claims: str, **labels: Any) -> IndexMethod:
    """Register a search as a method under `name`; `labels` as in `Published`."""
    method = IndexMethod(name, search, source=source, claims=claims, **labels)
    METHODS.register(name)(method)
    return method
