from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate.collection import Collection, read_collection

DOCUMENTS = [
    {"_id": "d1", "title": "Wing", "text": "Wing in a stream"},
    {"_id": "d2", "title": "Plate", "text": "flow"},
]
QUERIES = [{"_id": "q1", "text": "wing"}, {"_id": "q2", "text": "nothing"}]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


def beir(folder: Path) -> Path:
    write(folder / "corpus.jsonl", jsonl(DOCUMENTS))
    write(folder / "queries.jsonl", jsonl(QUERIES))
    write(folder / "qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    return folder


def test_beir_layout(tmp_path: Path):
    found = read_collection(beir(tmp_path))
    assert found.documents == {"d1": "Wing in a stream", "d2": "Plate flow"}
    assert found.qrels == {"q1": {"d1": 2, "d2": 0}}
    assert found.judged == ["q1"]


def test_plain_layout_compressed_is_the_same(tmp_path: Path):
    rows = [{"id": d["_id"], "title": d["title"], "text": d["text"]} for d in DOCUMENTS]
    write(tmp_path / "b/docs.jsonl.gz", jsonl(rows))
    write(tmp_path / "b/queries.jsonl.gz", jsonl([{"id": q["_id"], "text": q["text"]} for q in QUERIES]))
    write(tmp_path / "b/qrels.tsv", "q1\td1\t2\nq1\td2\t0\n")
    a, b = read_collection(beir(tmp_path / "a")), read_collection(tmp_path / "b")
    assert (a.documents, a.queries, a.qrels) == (b.documents, b.queries, b.qrels)


def test_first_keeps_judged_queries_and_all_documents(tmp_path: Path):
    found = read_collection(beir(tmp_path)).first(1)
    assert list(found.queries) == ["q1"]
    assert len(found.documents) == 2


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("corpus.jsonl", "", "no texts"),
        ("corpus.jsonl", "{", "line 1 is not JSON"),
        ("corpus.jsonl", "[1]\n", "not a JSON object"),
        ("corpus.jsonl", '{"text": "a"}\n', "neither `_id` nor `id`"),
        ("corpus.jsonl", '{"_id": "a"}\n', "no `text`"),
        ("qrels/test.tsv", "q1\td1\n", "holds no judgements"),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td1\tmany\n", "line 2"),
        ("qrels/test.tsv", "other\td1\t1\n", "same ids"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, file: str, text: str, message: str):
    folder = beir(tmp_path)
    write(folder / file, text)
    with pytest.raises(CalibrationError, match=message):
        read_collection(folder)


def test_missing_and_damaged_files(tmp_path: Path):
    with pytest.raises(CalibrationError, match="not a folder"):
        read_collection(tmp_path / "none")
    with pytest.raises(CalibrationError, match=r"corpus\.jsonl"):
        read_collection(tmp_path)
    folder = beir(tmp_path)
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(jsonl(DOCUMENTS).encode())[:-9])
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_collection(folder)


def test_a_collection_without_judged_queries_is_refused():
    with pytest.raises(CalibrationError, match="No query"):
        Collection({"d": "x"}, {"q": "x"}, {"q": {"d": 0}})
