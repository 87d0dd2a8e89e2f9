"""The layout of BEIR: corpus.jsonl, queries.jsonl, qrels/*.tsv (Thakur et al., 2021, arXiv 2104.08663)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sparseworks.core.errors import CalibrationError
from sparseworks.retrieval.exchange.lines import lines, records, write_lines

Qrels = dict[str, dict[str, int]]


def read_texts(path: Path | str) -> dict[str, str]:
    """id -> text (title and text joined) of corpus.jsonl, queries.jsonl, or the corpus of a folder; each may end in .gz.

    Raises:
        CalibrationError: missing or unreadable; the message names file and line.
    """
    source = Path(path)
    if source.is_dir():
        source = _in(source, "corpus.jsonl")
    found: dict[str, str] = {}
    for where, record in records(source):
        name = record.get("_id", record.get("id", record.get("doc_id")))
        text = record.get("text", record.get("contents"))
        if name is None or not isinstance(text, str):
            raise CalibrationError(f"{where} needs `_id` and `text`.")
        if str(name) in found:
            raise CalibrationError(f"{where}: the id {name!r} occurs twice.")
        title = record.get("title") or ""
        found[str(name)] = f"{title} {text}".strip() if title else text
    if not found:
        raise CalibrationError(f"{source} has no texts.")
    return found


def read_queries(folder: Path | str) -> dict[str, str]:
    """id -> text of the queries of a folder, or of a file.

    Raises:
        CalibrationError: as `read_texts`.
    """
    source = Path(folder)
    return read_texts(_in(source, "queries.jsonl") if source.is_dir() else source)


def read_qrels(path: Path | str, split: str = "test") -> Qrels:
    """query -> (document -> grade) of qrels/test.tsv, or of a file with three columns (BEIR) or four (TREC).

    Raises:
        CalibrationError: missing, or a line of another form.
    """
    source = Path(path)
    if source.is_dir():
        source = _in(source, f"qrels/{split}.tsv", f"{split}.tsv", "qrels.tsv", "qrels.txt")
    qrels: Qrels = {}
    for number, (where, line) in enumerate(lines(source)):
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) not in (3, 4):
            raise CalibrationError(f"{where} has {len(cells)} columns; judgements have three (BEIR) or four (TREC).")
        try:
            grade = int(cells[-1])
        except ValueError:
            if number == 0:
                continue  # a header
            raise CalibrationError(f"{where}: the grade {cells[-1].strip()!r} is no whole number.") from None
        qrels.setdefault(cells[0], {})[cells[-2]] = grade
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


def _in(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise CalibrationError(f"{folder} has no {' or '.join(names)}.")
