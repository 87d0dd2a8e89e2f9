from __future__ import annotations

import random

import bm25s
import pytest
import torch

from sparseworks.core.errors import CalibrationError, CheckpointError, RecipeError
from sparseworks.exec.search import InvertedIndex
from sparseworks.exec.search.rows import dense
from sparseworks.retrieval.bm25 import BM25, VARIANTS


def texts(count=150, words=80, seed=0):
    rng = random.Random(seed)
    zipf = [f"word{int(min(words - 1, rng.paretovariate(0.7)))}" for _ in range(count * 40)]
    return [" ".join(zipf[i * 40 : i * 40 + rng.randint(3, 40)]) for i in range(count)]


@pytest.mark.parametrize("method", VARIANTS)
def test_scores_are_those_of_bm25s(method):
    corpus, queries = texts(), ["word3 word17", "word1 word1 word60 word2", "word9"]
    ours = BM25(method=method, stop_words=None).fit(corpus)
    scores = dense(ours.queries(queries), 0, 3) @ dense(ours.documents(corpus), 0, len(corpus)).T
    scores += ours.absent(queries).unsqueeze(1)
    tokens = [ours.words(t) for t in corpus]
    peer = bm25s.BM25(method=method, k1=1.5, b=0.75, delta=0.5)
    peer.index(tokens, show_progress=False)
    for i, query in enumerate(queries):
        theirs = torch.from_numpy(peer.get_scores(ours.words(query)).copy())
        assert torch.allclose(scores[i], theirs, rtol=1e-5, atol=1e-5)


def test_an_index_ranks_as_the_formula_does():
    corpus = texts(seed=1)
    bm25 = BM25().fit(corpus)
    queries = bm25.queries(["word5 word30", "word2"])
    scores, found = InvertedIndex(bm25.documents(corpus)).search(queries, 5)
    exact = dense(queries, 0, 2) @ dense(bm25.documents(corpus), 0, len(corpus)).T
    assert torch.allclose(scores, exact.sort(1, descending=True).values[:, :5]) and found.shape == (2, 5)


def test_words_are_lower_case_without_stop_words():
    assert BM25().words("The CAT, a cat and I: naïve Café!") == ["cat", "cat", "naïve", "café"]
    assert BM25(stop_words=("cat",)).words("The cat") == ["the"]
    assert BM25(stop_words=None).words("the cat") == ["the", "cat"]


def test_stems_bring_forms_of_a_word_together():
    bm25 = BM25(stem="english").fit(["pruned weights", "attention"])
    assert bm25.words("Pruning a weight") == ["prune", "weight"]
    assert len(bm25.queries(["pruning"]).values) == 1 and len(BM25().fit(["pruned"]).queries(["pruning"]).values) == 0
    assert BM25(stem="porter").words("skis dying") == ["ski", "dy"] and BM25(stem="english").words("dying") == ["die"]
    with pytest.raises(RecipeError, match="porter"):
        BM25(stem="klingon")


def test_unknown_words_and_empty_texts_have_no_terms():
    bm25 = BM25().fit(["alpha beta", "beta gamma gamma"])
    rows = bm25.queries(["delta", "", "gamma gamma delta"])
    assert rows.ptr.tolist() == [0, 0, 0, 1] and rows.values.tolist() == [2.0]
    assert len(bm25.documents(["", "zeta"]).values) == 0


@pytest.mark.parametrize("stop", [None, ("alpha",)])
def test_statistics_survive_a_round_trip_and_damage_is_refused(tmp_path, stop):
    bm25 = BM25(k1=1.2, b=0.4, method="bm25+", stop_words=stop).fit(["alpha beta", "beta gamma gamma"])
    bm25.save(tmp_path / "bm25.json")
    again = BM25.load(tmp_path / "bm25.json")
    assert again == bm25 and again.vocabulary == bm25.vocabulary
    assert torch.equal(again.documents(["gamma alpha"]).values, bm25.documents(["gamma alpha"]).values)
    text = (tmp_path / "bm25.json").read_text()
    (tmp_path / "bm25.json").write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError):
        BM25.load(tmp_path / "bm25.json")
    with pytest.raises(CheckpointError):
        bm25.save(tmp_path / "missing" / "bm25.json")


def test_bad_input_is_refused():
    with pytest.raises(RecipeError, match="lucene"):
        BM25(method="tfidf")
    with pytest.raises(RecipeError):
        BM25(b=1.5)
    with pytest.raises(RecipeError, match="english"):
        BM25(stop_words="german")
    with pytest.raises(CalibrationError):
        BM25().fit(["", "a I"])
    with pytest.raises(CalibrationError, match="Fit"):
        BM25().queries(["alpha"])
