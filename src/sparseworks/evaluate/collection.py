"""Retrieval collections: documents, queries, judgements; read from folders in BEIR layout or with TREC judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparseworks.core.errors import CalibrationError
from sparseworks.io.beir import read_qrels, read_queries, read_texts


@dataclass(frozen=True)
class Collection:
    """Documents, queries and graded judgements.

    Attributes:
        documents: id -> text (title and text joined).
        queries: id -> text; only queries with at least one relevant document are evaluated.
        qrels: query id -> (document id -> grade); missing or 0 = not relevant.
        name: where it came from.

    Raises:
        CalibrationError: no document, or no query that has text and a relevant document.
    """

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    name: str = "collection"

    def __post_init__(self) -> None:
        if not self.documents:
            raise CalibrationError(f"The collection {self.name!r} has no documents.")
        if not self.judged:
            raise CalibrationError(
                f"No query of {self.name!r} has a relevant document ({len(self.queries)} queries, {len(self.qrels)} with "
                "judgements): check that queries and judgements use the same ids."
            )

    @property
    def judged(self) -> list[str]:
        """Ids of the queries with at least one relevant document, in the order of the file."""
        return [q for q in self.queries if any(g > 0 for g in self.qrels.get(q, {}).values())]

    def first(self, queries: int | None = None) -> Collection:
        """The same documents with only the first `queries` judged queries."""
        if queries is None:
            return self
        kept = self.judged[:queries]
        return Collection(self.documents, {q: self.queries[q] for q in kept}, self.qrels, self.name)


def read_collection(folder: Path | str) -> Collection:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv` (BEIR), or `docs.jsonl`, `queries.jsonl`, `qrels.tsv`; each may end in .gz.

    Documents have `_id` (or `id`), `title` (optional) and `text`; queries `_id` (or `id`) and `text`. Judgements have three
    columns `query document grade` (a header line is skipped) or the four of TREC, `query iteration document grade`.

    Raises:
        CalibrationError: a file is missing, empty, or a line of it cannot be read; the message names file and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CalibrationError(
            f"{folder} is not a folder; a collection is a folder with documents, queries and judgements."
        )
    return Collection(read_texts(folder), read_queries(folder), read_qrels(folder), folder.resolve().name)
