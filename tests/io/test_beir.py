"""BEIR's layout and TREC's judgements: what is written is read again, and what cannot be read is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sparseworks.core.errors import CalibrationError
from sparseworks.io.beir import joined, read_qrels, read_queries, read_texts, write_beir

TEXTS = {"d1": "A first text", "d 2": "A second; with ünicode", "d3": "third"}
QRELS = {"q1": {"d1": 2, "d3": 0}, "q2": {"d 2": 1}}


def test_beir_folders(tmp_path):
    folder = write_beir(tmp_path / "beir", TEXTS, {"q1": "first", "q2": "second"}, QRELS)
    assert read_texts(folder) == TEXTS and read_qrels(folder) == QRELS
    assert read_queries(folder) == {"q1": "first", "q2": "second"}
    assert read_texts(folder / "corpus.jsonl") == TEXTS and read_qrels(folder / "qrels" / "test.tsv") == QRELS
    with gzip.open(tmp_path / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"id": 7, "title": "Title", "text": "body"}) + "\n")
    assert read_texts(tmp_path / "texts.jsonl.gz") == {"7": "Title body"}


def test_trec_judgements_have_four_columns(tmp_path: Path):
    path = tmp_path / "qrels.txt"
    path.write_text("q1 0 d1 2\nq1 0 d2 0\nq7 0 d9 1\n")
    assert read_qrels(path) == {"q1": {"d1": 2, "d2": 0}, "q7": {"d9": 1}}


@pytest.mark.parametrize(
    ("title", "text", "whole"), [("A b", "A b c", "A b c"), ("A", "b", "A b"), ("", " c ", "c"), ("A", "", "A")]
)
def test_title_is_not_repeated(title: str, text: str, whole: str):
    assert joined(title, text) == whole


@pytest.mark.parametrize(
    ("name", "text", "read", "message"),
    [
        ("a.jsonl", '{"text": "x"}', read_texts, "line 1 has neither `_id`"),
        ("a.jsonl", '{"_id": 1}', read_texts, "line 1 has no `text`"),
        ("a.jsonl", "{", read_texts, "line 1 is not JSON"),
        ("a.jsonl", "[]", read_texts, "not a JSON object but list"),
        ("a.jsonl", '{"_id": 1, "text": "x"}\n\n{"_id": 1, "text": "y"}', read_texts, "line 3: the id 1 occurs twice"),
        ("a.jsonl", "", read_texts, "has no texts"),
        ("a.jsonl.gz", "no gzip", read_texts, "cannot be read"),
        ("none/x", "", read_texts, "has none of corpus.jsonl, docs.jsonl"),
        ("none/x", "", read_queries, "has none of queries.jsonl"),
        ("q.tsv", "q\td\tg\nq\td\tx", read_qrels, "line 2: expected"),
        ("q.tsv", "q\td\t1\nq\td\tinf", read_qrels, "line 2: expected"),
        ("q.tsv", "q\td\t1\nq\t2", read_qrels, "line 2: expected"),
        ("q.tsv", "query\tdocument\tgrade", read_qrels, "no judgements"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, read, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        read(path.parent if path.parent.name == "none" else path)
