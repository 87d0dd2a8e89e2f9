"""An index of texts: which encoder makes its vectors is kept beside it, so that queries are encoded as documents were."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from sparseworks.core.errors import CheckpointError, RecipeError
from sparseworks.retrieval.exchange.lines import write_lines
from sparseworks.retrieval.index import Hits, Index
from sparseworks.retrieval.index.snapshot import Filter
from sparseworks.retrieval.vectors import SparseVectors

NAME = "encoder.json"


class TextEncoder(Protocol):
    """What makes vectors of texts: documents and queries of one width."""

    def documents(self, texts: Sequence[str]) -> SparseVectors:
        """One vector a document."""
        ...

    def queries(self, texts: Sequence[str]) -> SparseVectors:
        """One vector a query."""
        ...


def bm25(**options: Any) -> Any:
    """An encoder that is not fitted yet: `sparseworks.retrieval.bm25.BM25`.

    Raises:
        RecipeError: this installation has none.
    """
    try:
        return import_module("sparseworks.retrieval.bm25").BM25(**options)
    except ImportError:
        raise RecipeError(
            "This installation has no encoder of texts (sparseworks.retrieval.bm25): give vectors instead."
        ) from None


@dataclass
class TextIndex:
    """An `Index`, the encoder of its texts, and the texts themselves as metadata (`text`).

    Attributes:
        index: the vectors.
        encoder: makes them.
    """

    index: Index
    encoder: TextEncoder

    @classmethod
    def create(cls, path: Path | str, texts: Mapping[str, str], **options: Any) -> TextIndex:
        """BM25 vectors of these texts; `options` as BM25 takes them.

        Raises:
            RecipeError: an unknown option.
            CheckpointError: the folder holds something, or cannot be written.
        """
        try:
            encoder = bm25(**options).fit(list(texts.values()))
        except TypeError as error:
            raise RecipeError(f"BM25 cannot be made with {options}: {error}.") from error
        vectors = encoder.documents(list(texts.values()))
        index = Index.create(path, vectors.width)
        write_lines(Path(path) / NAME, [json.dumps({"encoder": "bm25", "options": options})])
        if hasattr(encoder, "save"):
            encoder.save(Path(path) / "encoder")
        made = cls(index, encoder)
        index.add(list(texts), vectors, [{"text": t} for t in texts.values()])
        return made

    @classmethod
    def open(cls, path: Path | str) -> TextIndex:
        """The index in a folder, with its encoder.

        Raises:
            CheckpointError: no index, damage, or one of vectors without an encoder.
        """
        index, head = Index.open(path), Path(path) / NAME
        try:
            known = json.loads(head.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is an index of vectors, not of texts: search it with vectors ({error})."
            ) from error
        encoder = bm25(**known["options"])
        saved = Path(path) / "encoder"
        if hasattr(encoder, "load") and saved.exists():
            encoder = type(encoder).load(saved)
        else:
            encoder = encoder.fit(_texts(index))
        return cls(index, encoder)

    def add(self, texts: Mapping[str, str]) -> int:
        """Add texts: words that those of `create` did not have are unknown. How many documents there are then.

        Raises:
            CheckpointError: as `Index.add`.
        """
        vectors = self.encoder.documents(list(texts.values()))
        return self.index.add(list(texts), vectors, [{"text": t} for t in texts.values()])

    def search(
        self,
        queries: Iterable[str],
        k: int = 10,
        *,
        recall: float | None = None,
        filter: Filter | None = None,
        threads: int | None = None,
    ) -> Hits:
        """As `Index.search`, of texts."""
        vectors = self.encoder.queries(list(queries))
        return self.index.search(vectors, k, recall=recall, filter=filter, threads=threads)

    def text(self, hits: Hits, query: int, rank: int) -> str:
        """The text of a hit of the current snapshot."""
        return str(self.index.snapshot.metadata(int(hits.positions[query, rank])).get("text", ""))


def _texts(index: Index) -> list[str]:
    texts = []
    for s in index.snapshot.segments:
        kept = range(len(s)) if s.live is None else s.live.nonzero().flatten().tolist()
        texts += [str(s.metadata_of(i).get("text", "")) for i in kept]
    return texts
