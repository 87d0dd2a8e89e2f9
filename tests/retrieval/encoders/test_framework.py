from __future__ import annotations

import pytest

import sparseworks as sw
from sparseworks.evaluate import TopicCorpus
from sparseworks.retrieval.encoders import idf_of
from sparseworks.retrieval.losses import InfoNCE
from sparseworks.retrieval.regularisers import Flops
from sparseworks.retrieval.train import train_retriever

CORPUS = TopicCorpus(topics=6, concepts=4, own=2, passing=2, asked=1, stop=3, stop_words=8)
TOKENIZER = CORPUS.tokenizer()
WIDTH = TOKENIZER.get_vocab_size()
COLLECTION = CORPUS.collection(200, 100)
SMALL = Flops(0.01)
CASES = {
    "mlm/mlm": ("splade", {"query_regulariser": SMALL, "document_regulariser": SMALL}),
    "mlp/mlm": ("lsr_framework", {"document_regulariser": SMALL}),
    "mlm/binary": ("splade", {"document_head": "binary", "query_regulariser": SMALL, "document_regulariser": None}),
    "binary/mlm": ("splade_doc", {"document_regulariser": SMALL}),
    "idf/mlm": ("idf_flops", {"document_regulariser": SMALL}),
}


@pytest.fixture(scope="module")
def trained(tiny):
    """Each case trained for seconds, those that are compared alike, and how it ranks."""
    pairs, found = CORPUS.pairs(3000), {}
    idf = idf_of([e.ids for e in TOKENIZER.encode_batch([d for _, d in pairs])], WIDTH)
    for name, (method, changes) in CASES.items():
        method = sw.method(method).with_(loss=InfoNCE(), **changes)
        encoder = method.encoder(tiny.bert(WIDTH), TOKENIZER, idf=idf)
        steps = 150 if name in ("binary/mlm", "idf/mlm") else 220
        train_retriever(encoder, method, pairs, steps=steps, batch_size=48, rate=3e-3)
        found[name] = tiny.measure(encoder, COLLECTION)
    return found


def test_document_weights_matter_most_and_queries_need_no_expansion(trained):
    whole, few, bare = trained["mlm/mlm"], trained["mlp/mlm"], trained["mlm/binary"]
    assert bare.ndcg < whole.ndcg - 0.05 and bare.ndcg < few.ndcg - 0.04
    assert few.ndcg > whole.ndcg - 0.08 and 3 * few.asked < whole.asked


def test_queries_weighted_by_idf_rank_better_with_documents_as_long(trained):
    even, weighted = trained["binary/mlm"], trained["idf/mlm"]
    assert weighted.ndcg > even.ndcg + 0.08 and weighted.nnz < 1.2 * even.nnz


def test_of_both_sides_weights_those_of_documents_matter_more(tiny):
    """Where half of a query are stop-words; where they are two thirds, as above, a query without weights costs as much (MRR@10)."""
    corpus = TopicCorpus(topics=6, concepts=5, own=3, passing=4, asked=2, stop=3, stop_words=8)
    tokenizer, found = corpus.tokenizer(), {}
    for name in ("mlm/mlm", "mlm/binary", "binary/mlm"):
        method = sw.method(CASES[name][0]).with_(loss=InfoNCE(), **CASES[name][1])
        encoder = method.encoder(tiny.reader(tokenizer.get_vocab_size()), tokenizer, hidden=64)
        train_retriever(encoder, method, corpus.pairs(3000), steps=200, batch_size=48, rate=1e-2)
        found[name] = tiny.measure(encoder, corpus.collection(200, 100))
    whole, bare, even = found.values()
    assert bare.mrr < even.mrr - 0.01 and bare.ndcg < even.ndcg - 0.01 and even.ndcg < whole.ndcg, [
        (x.mrr, x.ndcg) for x in found.values()
    ]
