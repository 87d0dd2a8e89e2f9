"""`sparseworks index`, `search`, `serve`: from texts or vectors to hits, files of other systems, and refusals in a sentence."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sparseworks.cli.app import app
from sparseworks.core.errors import BudgetError, CalibrationError, CheckpointError, RecipeError
from sparseworks.retrieval import SparseVectors
from sparseworks.retrieval.exchange import read_ciff, read_run, write_beir
from sparseworks.testing.index import example_vectors

RUN = CliRunner()
TEXTS = {
    "tides": "moon and sun raise tides",
    "moon": "the moon turns",
    "bread": "bread rises by yeast",
    "beer": "beer is made by yeast",
}


class Words:
    """Counts of words, with the interface of BM25."""

    def __init__(self, k1, b, method, stem, stop_words):
        self.options = k1, b, method, stem, stop_words

    def fit(self, texts):
        self.places = {w: i for i, w in enumerate(sorted({w for t in texts for w in t.split()}))}
        return self

    def documents(self, texts):
        rows = [[self.places[w] for w in t.split() if w in self.places] for t in texts]
        return SparseVectors.of_terms([{i: float(r.count(i)) for i in r} for r in rows], len(self.places))

    queries = documents


@pytest.fixture
def beir(tmp_path, monkeypatch):
    monkeypatch.setattr("sparseworks.retrieval.texts.bm25", lambda **options: Words(**options))
    return write_beir(
        tmp_path / "beir", TEXTS, {"q1": "moon tides", "q2": "yeast"}, {"q1": {"tides": 1}, "q2": {"beer": 1}}
    )


def run(*args):
    return RUN.invoke(app, [*map(str, args)], catch_exceptions=False)


def answer(*args) -> dict:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def many_queries(folder):
    path = folder / "queries.jsonl"
    path.write_text("".join(json.dumps({"_id": str(i), "text": "moon yeast"}) + "\n" for i in range(50)))
    return path


def test_stems_are_kept_with_the_index(tmp_path):
    beir = write_beir(
        tmp_path / "beir", {"a": "pruned weights", "b": "dense models"}, {"q": "pruning"}, {"q": {"a": 1}}
    )
    answer("index", tmp_path / "plain", "--add", beir)
    answer("index", tmp_path / "stemmed", "--add", beir, "--k1", 0.9, "--b", 0.4, "--stem", "porter")
    hits = {n: answer("search", tmp_path / n, "pruning", "-k", 1)["hits"]["pruning"] for n in ("plain", "stemmed")}
    assert hits["stemmed"][0]["id"] == "a" and not hits["plain"]
    with pytest.raises(RecipeError, match="klingon"):
        run("index", tmp_path / "other", "--add", beir, "--stem", "klingon")


def test_stop_words_are_lucenes_none_or_those_of_a_file(tmp_path):
    beir = write_beir(
        tmp_path / "beir", {"a": "the pruned weights", "b": "dense models"}, {"q": "the"}, {"q": {"a": 1}}
    )
    words = tmp_path / "words.txt"
    words.write_text("pruned\nweights\n")
    for name, given in (("lucene", "english"), ("none", "none"), ("own", str(words))):
        answer("index", tmp_path / name, "--add", beir, "--stop-words", given)
    found = {
        n: [bool(answer("search", tmp_path / n, w)["hits"][w]) for w in ("the", "pruned")]
        for n in ("lucene", "none", "own")
    }
    assert found == {"lucene": [False, True], "none": [True, True], "own": [True, False]}
    with pytest.raises(CalibrationError, match="nowhere"):
        run("index", tmp_path / "other", "--add", beir, "--stop-words", "nowhere")


def test_texts_are_indexed_searched_and_judged(beir, tmp_path):
    folder = tmp_path / "index"
    made = answer("index", folder, "--add", beir)
    assert made["documents"] == 4 and made["segments"] == 1
    found = answer("search", folder, "moon tides", "-k", 2)
    assert [h["id"] for h in found["hits"]["moon tides"]] == ["tides", "moon"] and found["exact"]
    many = answer("search", folder, "--queries", beir, "--qrels", beir, "--run", tmp_path / "run.trec")
    assert many["ndcg@10"] == pytest.approx((1 + 1 / 1.584962500721156) / 2)
    assert [d for d, _ in read_run(tmp_path / "run.trec")["q1"]] == ["tides", "moon"]
    assert "bread rises by yeast" in run("search", folder, "yeast").stdout
    assert "ndcg@10: 0.8155" in run("search", folder, "--queries", beir, "--qrels", beir).stdout
    (tmp_path / "gone.txt").write_text("moon\nunknown\n")
    again = answer("index", folder, "--delete", tmp_path / "gone.txt", "--merge", "--queries", many_queries(tmp_path))
    assert again["deleted"] == 1 and again["documents"] == 3 and again["segments"] == 1 and again["tried"]
    assert "recall 0.95 at 10: postings" in run("index", folder).stdout
    assert answer("index", folder, "--add", beir)["documents"] == 4, "what is there already is replaced"
    assert answer("search", folder, "yeast", "--where", "text=bread rises by yeast")["documents"] == 1


def test_vectors_come_and_go_in_files(tmp_path):
    vectors = example_vectors(30, 50, 0)
    vectors.save(tmp_path / "v.safetensors", [f"d{i}" for i in range(30)])
    example_vectors(3, 50, 1).save(tmp_path / "q.safetensors")
    made = answer("index", tmp_path / "index", "--add", tmp_path / "v.safetensors", "--export", tmp_path / "v.ciff")
    assert made["documents"] == 30 and len(read_ciff(tmp_path / "v.ciff")[0]) == 30
    found = answer("search", tmp_path / "index", "--queries", tmp_path / "q.safetensors", "--recall", 0.9)
    assert found["queries"] == 3 and len(found["hits"]["0"]) == 10
    answer("index", tmp_path / "again", "--add", tmp_path / "v.ciff", "--export", tmp_path / "w.safetensors")
    assert SparseVectors.load(tmp_path / "w.safetensors")[1] == [f"d{i}" for i in range(30)]
    answer("index", tmp_path / "again", "--export", tmp_path / "w.ndjson")
    assert len((tmp_path / "w.ndjson").read_text().splitlines()) == 60
    with pytest.raises(CalibrationError, match="exported as"):
        run("index", tmp_path / "again", "--export", tmp_path / "w.csv")
    with pytest.raises(CheckpointError, match="not of texts"):
        run("search", tmp_path / "index", "words")


def test_refusals(beir, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    with pytest.raises(CheckpointError, match="is no index"):
        run("search", folder, "moon")
    answer("index", folder, "--add", beir)
    with pytest.raises(CalibrationError, match="takes texts, or"):
        run("search", folder)
    with pytest.raises(CalibrationError, match="NAME=VALUE"):
        run("search", folder, "moon", "--where", "text")
    (tmp_path / "qrels.txt").write_text("other 0 d 1\n")
    with pytest.raises(CalibrationError, match="same ids"):
        run("search", folder, "--queries", beir, "--qrels", tmp_path / "qrels.txt")
    with pytest.raises(BudgetError, match="50 or more"):
        run("index", folder, "--merge", "--queries", beir)
    with pytest.raises(CheckpointError, match="is no index"):
        run("serve", tmp_path / "nowhere")


def test_without_an_encoder_texts_are_refused_in_a_sentence(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("sparseworks.retrieval.texts.import_module", missing)
    folder = write_beir(tmp_path / "beir", TEXTS, {}, {})
    with pytest.raises(RecipeError, match="give vectors instead"):
        run("index", tmp_path / "index", "--add", folder)


def test_serving_says_where(tmp_path, monkeypatch):
    example_vectors(3, 50, 0).save(tmp_path / "v.safetensors")
    answer("index", tmp_path / "index", "--add", tmp_path / "v.safetensors")
    served = []
    monkeypatch.setattr("sparseworks.retrieval.serve.serve", lambda *given: served.append(given))
    assert answer("serve", tmp_path / "index", "--port", 8123) == {"address": "http://127.0.0.1:8123/", "documents": 3}
    assert served == [(tmp_path / "index", "127.0.0.1", 8123)]
