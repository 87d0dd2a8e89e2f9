"""An index of texts: which encoder makes its vectors is kept beside it, so that queries are encoded as documents were."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from sparseworks.core.errors import CheckpointError, RecipeError
from sparseworks.exec.search import Rows
from sparseworks.io.lines import numbered, write_lines
from sparseworks.retrieval.index import Hits, Index
from sparseworks.retrieval.index.snapshot import Filter

NAME = "encoder.json"
_STATE, _FITTED = "encoder", "encoder-texts.jsonl"


class TextEncoder(Protocol):
    """What makes vectors of texts: documents and queries of one width."""

    def documents(self, texts: Sequence[str]) -> Rows:
        """One vector a document."""
        ...

    def queries(self, texts: Sequence[str]) -> Rows:
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
            encoder.save(Path(path) / _STATE)
        else:  # what it was fitted on says what it is
            write_lines(Path(path) / _FITTED, (json.dumps(t) for t in texts.values()))
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
        saved = Path(path) / _STATE
        if saved.exists():
            return cls(index, type(encoder).load(saved))
        return cls(index, encoder.fit([json.loads(line) for _, line in numbered(Path(path) / _FITTED)]))

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
