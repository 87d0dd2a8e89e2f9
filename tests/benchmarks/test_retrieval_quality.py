"""The benchmark of retrieval quality runs, trains on documents alone, and counts what it says."""

from __future__ import annotations

import importlib.util
import random
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from sparseworks.evaluate import TopicCorpus
from sparseworks.exec.search.rows import dense

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "retrieval"
NAMES = ("encoders", "figures", "common")


@pytest.fixture(scope="module")
def script():
    """`benchmarks/retrieval/quality.py`, found as when it is run."""
    before = {name: sys.modules.pop(name, None) for name in NAMES}
    spec = importlib.util.spec_from_file_location("retrieval_quality", SCRIPTS / "quality.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["retrieval_quality"] = module
    paths = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = paths
    for name, old in (*before.items(), ("retrieval_quality", None)):
        sys.modules.pop(name, None)
        if old is not None:
            sys.modules[name] = old


@pytest.fixture(scope="module")
def rows(script):
    """All rows of a quick run."""
    torch.manual_seed(0)
    return script.run(Namespace(quick=True, parts=list(script.PARTS), model="minilm", device="cpu"))


def test_every_representation_has_its_row(rows):
    names = {row["name"] for row in rows}
    assert {
        "MiniLM",
        "MiniLM, first dimensions",
        "Matryoshka head",
        "CSR",
        "idf_flops",
        "splade",
        "l0_inference_free",
    } <= names
    assert {"BM25 + idf_flops", "BM25 + MiniLM"} <= names and any("Pyserini" in name for name in names)
    assert all(0 <= row["ndcg@10"] <= 1 and 0 <= row["recall@100"] <= 1 and row["bytes"] > 0 for row in rows)
    published = next(row for row in rows if "Pyserini" in row["name"])
    assert published["ndcg@10"] > 0.3 and published["index bytes"] > published["bytes"]


def test_bytes_are_within_those_of_the_dense_vectors_beside_them(rows):
    whole = [row["bytes"] for row in rows if row["name"].startswith("MiniLM")]
    assert whole == [4 * n for n in (24, 12, 6, 3, 1)]
    codes = [row["bytes"] for row in rows if row["name"] == "CSR"]
    assert (
        all(code <= dense for code, dense in zip(codes[:-1], whole[:-1], strict=True)) and codes[-1] == 6
    )  # one entry


def test_sparse_rows_keep_their_largest_entries(script):
    w = script.Rows(torch.tensor([0, 3, 3, 4]), torch.tensor([0, 1, 3, 2]), torch.tensor([3.0, 1.0, 2.0, 5.0]), 4)
    assert dense(script.pruned(w, 2), 0, 3).tolist() == [[3, 0, 0, 2], [0, 0, 0, 0], [0, 0, 5, 0]]


def test_a_smaller_vocabulary_reads_the_texts_as_before(script):
    corpus = TopicCorpus(topics=3, concepts=3, own=2, passing=1, asked=1)
    tokenizer = corpus.tokenizer()
    texts = [d for _, d in corpus.pairs(3)]
    smaller, ids = script.encoders.cut_vocabulary(tokenizer, texts)
    assert smaller.get_vocab_size() == len(ids) < tokenizer.get_vocab_size()
    for before, after in zip(tokenizer.encode_batch(texts), smaller.encode_batch(texts), strict=True):
        assert [ids[i] for i in after.ids] == before.ids


def test_made_up_queries_are_words_of_their_document(script):
    text = "First of all a title. Then a sentence, and another one! At last the end of it"
    for piece in script.encoders.pieces(text, random.Random(0)):
        assert piece in text
    assert script.encoders.pieces("one", random.Random(0))[0] == "one"


def test_a_row_offers_the_document_itself_or_others_near_it(script):
    documents = [f"document number {i:02}" for i in range(30)]
    vectors = torch.nn.functional.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    asked = script.encoders.Asked.of(documents, lambda texts: torch.ones(len(texts), 8))
    rows = asked.rows(documents, vectors, 40)
    assert len(rows) == 40 and all(len(row) == 4 for row in rows)
    assert all(row[0] in row[1] and row[1] not in row[2:] for row in rows[::2])
    assert all(asked.texts.count(row[0]) > 1 or row[0] not in row[1] for row in rows[1::2])


def test_the_rate_is_chosen_that_keeps_most_of_the_nearest_documents_of_queries_not_trained_on(script):
    """Twelve documents; scores of held-out queries rise with the document, those of the others fall: ten are nearest."""
    rising = torch.arange(1.0, 13)
    held = torch.arange(30) % 10 == 0
    queries = torch.where(held[:, None], rising, rising.flip(0)) + torch.arange(30)[:, None] / 100
    asked = Namespace(vectors=queries, owner=torch.arange(30) % 12)
    data = Namespace(documents=torch.eye(12), made_up={3: asked}.__getitem__)
    raised = {1e-4: [0], 3e-4: [0, 1], 1e-3: [11], 3e-3: [11, 10]}  # what each rate's model makes larger
    trained, coded = [], []

    def train(pairs, rate):
        trained.append(pairs)
        return torch.ones(12).index_fill(0, torch.tensor(raised[rate]), 10.0)

    def code(model, x):
        coded.append(x)
        return x * model

    choose = lambda *rates: script.best_rate(data, Namespace(pieces=3), rates, train, code)  # noqa: E731
    # nine, eight and all ten of the nearest are kept; of the queries that were trained on ten, ten and nine
    assert choose(1e-4, 3e-4, 1e-3) == 1e-3 and choose(3e-4, 1e-4) == 1e-4
    assert choose(3e-3, 1e-3) == 3e-3 and choose(1e-3, 3e-3) == 1e-3  # of equal ones the first
    assert all(torch.equal(p.queries, queries[~held]) for p in trained)
    assert all(torch.equal(p.documents, torch.eye(12)[asked.owner[~held]]) for p in trained)
    assert all(torch.equal(x, queries[held]) for x in coded[::2]) and all(len(x) == 12 for x in coded[1::2])
