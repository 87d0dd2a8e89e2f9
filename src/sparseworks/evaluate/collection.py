"""Retrieval collections: documents, queries, judgements; read from folders in BEIR layout or with TREC judgements."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sparseworks.core.errors import CalibrationError

DOCUMENTS = ("corpus.jsonl", "docs.jsonl", "documents.jsonl")
QUERIES = ("queries.jsonl",)
QRELS = ("qrels/test.tsv", "qrels.tsv", "qrels/test.txt", "qrels.txt", "qrels.test.tsv", "qrels")


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
    return Collection(
        {
            _id(r, where): joined(r.get("title") or "", _text(r, where))
            for where, r in _records(_find(folder, DOCUMENTS))
        },
        {_id(r, where): _text(r, where) for where, r in _records(_find(folder, QUERIES))},
        read_qrels(_find(folder, QRELS)),
        folder.resolve().name,
    )


def read_qrels(path: Path | str) -> dict[str, dict[str, int]]:
    """Judgements of three (BEIR) or four (TREC) columns, by tabs or blanks; BEIR's header line is skipped.

    Raises:
        CalibrationError: a line has another number of columns or no whole number as grade.
    """
    path = Path(path)
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines(path), start=1):
        columns = line.split()
        if not columns or (number == 1 and not _whole(columns[-1])):
            continue
        if len(columns) not in (3, 4) or not _whole(columns[-1]):
            raise CalibrationError(
                f"{path}, line {number}: expected `query document grade` or `query iteration document grade`, got {line!r}."
            )
        qrels.setdefault(columns[0], {})[columns[-2]] = round(float(columns[-1]))
    if not qrels:
        raise CalibrationError(f"{path} holds no judgements.")
    return qrels


def joined(title: str, text: str) -> str:
    """Title and text with a blank between; the title is not repeated where the text already begins with it."""
    title, text = title.strip(), text.strip()
    return text if not title or text.startswith(title) else f"{title} {text}".strip()


def lines(path: Path) -> Iterator[str]:
    """Lines of a text file, compressed if the name ends in .gz, without their ends.

    Raises:
        CalibrationError: the file cannot be opened, unpacked or decoded as UTF-8.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def records(path: Path | str, limit: int | None = None) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, at most `limit`.

    Raises:
        CalibrationError: a line is not a JSON object.
    """
    return [record for _, record in islice(_records(Path(path)), limit)]


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CalibrationError(f"{where} is not JSON: {error}.") from error
        if not isinstance(record, dict):
            raise CalibrationError(f"{where} is not a JSON object but {type(record).__name__}.")
        yield where, record


def _find(folder: Path, names: Sequence[str]) -> Path:
    candidates = [folder / f"{name}{end}" for name in names for end in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return path
    raise CalibrationError(f"{folder} has none of {', '.join(names)} (nor one of them with .gz).")


def _id(record: Mapping[str, Any], where: str) -> str:
    for key in ("_id", "id"):
        if key in record:
            return str(record[key])
    raise CalibrationError(f"{where} has neither `_id` nor `id`.")


def _text(record: Mapping[str, Any], where: str) -> str:
    if not isinstance(record.get("text"), str):
        raise CalibrationError(f"{where} has no `text`.")
    return record["text"]


def _whole(word: str) -> bool:
    try:
        return float(word) == round(float(word))
    except ValueError:
        return False
