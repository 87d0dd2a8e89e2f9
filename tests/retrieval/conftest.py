"""Small vectors of whole numbers, and a browser."""

from __future__ import annotations

import shutil

import pytest

from sparseworks.retrieval import SparseVectors
from sparseworks.retrieval.exchange import write_beir
from sparseworks.testing.index import example_vectors

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def vectors():
    return example_vectors(90, 50, 0)


@pytest.fixture
def queries():
    return example_vectors(7, 50, 1)


@pytest.fixture
def ids(vectors):
    return [f"d{i}" for i in range(len(vectors))]


@pytest.fixture
def chromium() -> str:
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium); the CI entry point installs it")
    return CHROMIUM


class Words:
    """An encoder of texts as BM25 has it, without its weights: counts of words."""

    def __init__(self, k1=1.5, b=0.75, method="lucene"):
        self.options = k1, b, method

    def fit(self, texts):
        words = sorted({w for t in texts for w in t.lower().split()})
        self.places = {w: i for i, w in enumerate(words)}
        return self

    def documents(self, texts):
        rows = [[self.places[w] for w in t.lower().split() if w in self.places] for t in texts]
        return SparseVectors.of_terms([{i: float(r.count(i)) for i in r} for r in rows], len(self.places))

    queries = documents


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr("sparseworks.retrieval.texts.bm25", Words)


@pytest.fixture
def beir(tmp_path):
    """Six texts, two queries, judgements."""
    texts = {
        "bees": "honey bees dance to tell where flowers are", "ants": "ants follow trails of scent to food",
        "tides": "the moon and the sun raise tides", "moon": "the moon turns once a month around the earth",
        "bread": "bread rises by yeast", "beer": "beer and bread are made by yeast of one kind",
    }  # fmt: skip
    qrels = {"q1": {"moon": 1, "tides": 1}, "q2": {"bread": 2, "beer": 1}}
    return write_beir(tmp_path / "beir", texts, {"q1": "the moon", "q2": "bread yeast"}, qrels)
