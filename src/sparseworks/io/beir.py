"""The layout of BEIR: corpus.jsonl, queries.jsonl, qrels/*.tsv (Thakur et al., 2021, arXiv 2104.08663), and judgements of TREC."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparseworks.core.errors import CalibrationError
from sparseworks.io.lines import numbered, records, write_lines

Qrels = dict[str, dict[str, int]]
DOCUMENTS = ("corpus.jsonl", "docs.jsonl", "documents.jsonl")
QUERIES = ("queries.jsonl",)


def read_texts(path: Path | str, names: Sequence[str] = DOCUMENTS) -> dict[str, str]:
    """id -> text (title and text joined) of a file of JSON lines, or of the first of `names` in a folder; each may end in .gz.

    A record has `_id` (or `id`, `doc_id`), `text` (or `contents`) and perhaps `title`.

    Raises:
        CalibrationError: missing, unreadable, empty, or an id that occurs twice; the message names file and line.
    """
    source = Path(path)
    if source.is_dir():
        source = _in(source, names)
    found: dict[str, str] = {}
    for where, record in records(source):
        name = record.get("_id", record.get("id", record.get("doc_id")))
        text = record.get("text", record.get("contents"))
        if name is None or not isinstance(text, str):
            lacking = "neither `_id` nor `id`" if name is None else "no `text`"
            raise CalibrationError(f"{where} has {lacking}.")
        if str(name) in found:
            raise CalibrationError(f"{where}: the id {name!r} occurs twice.")
        found[str(name)] = joined(record.get("title") or "", text)
    if not found:
        raise CalibrationError(f"{source} has no texts.")
    return found


def read_queries(path: Path | str) -> dict[str, str]:
    """id -> text of the queries of a folder, or of a file.

    Raises:
        CalibrationError: as `read_texts`.
    """
    return read_texts(path, QUERIES)


def read_qrels(path: Path | str, split: str = "test") -> Qrels:
    """query -> (document -> grade) of qrels/test.tsv, or of a file with three columns (BEIR) or four (TREC).

    Columns are parted by tabs, or by blanks in a line that has no tab; a header is skipped.

    Raises:
        CalibrationError: missing, empty, or a line of another form.
    """
    source = Path(path)
    if source.is_dir():
        kept = (
            f"qrels/{split}.tsv",
            f"{split}.tsv",
            "qrels.tsv",
            f"qrels/{split}.txt",
            "qrels.txt",
            f"qrels.{split}.tsv",
            "qrels",
        )
        source = _in(source, kept)
    qrels: Qrels = {}
    for number, (where, line) in enumerate(numbered(source)):
        cells = line.split("\t") if "\t" in line else line.split()
        grade = _whole(cells[-1])
        if number == 0 and grade is None:
            continue  # a header
        if len(cells) not in (3, 4) or grade is None:
            raise CalibrationError(
                f"{where}: expected `query document grade` (BEIR) or `query iteration document grade` (TREC), got {line!r}."
            )
        qrels.setdefault(cells[0], {})[cells[-2]] = grade
    if not qrels:
        raise CalibrationError(f"{source} holds no judgements.")
    return qrels


def write_beir(
    folder: Path | str, documents: Mapping[str, str], queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]]
) -> Path:
    """A folder that BEIR's loader reads.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    target = Path(folder)
    (target / "qrels").mkdir(parents=True, exist_ok=True)
    texts = lambda of: (json.dumps({"_id": i, "title": "", "text": t}) for i, t in of.items())  # noqa: E731
    write_lines(target / "corpus.jsonl", texts(documents))
    write_lines(target / "queries.jsonl", texts(queries))
    judged = (f"{q}\t{d}\t{g}" for q, grades in qrels.items() for d, g in grades.items())
    write_lines(target / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *judged])
    return target


def joined(title: str, text: str) -> str:
    """Title and text with a blank between; the title is not repeated where the text already begins with it."""
    title, text = title.strip(), text.strip()
    return text if not title or text.startswith(title) else f"{title} {text}".strip()


def _in(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise CalibrationError(f"{folder} has none of {', '.join(names)} (nor one of them with .gz).")


def _whole(word: str) -> int | None:
    try:
        grade = float(word)
        return round(grade) if grade == round(grade) else None
    except (ValueError, OverflowError):
        return None
