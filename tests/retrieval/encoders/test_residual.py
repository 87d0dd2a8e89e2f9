"""What is new in `prosper_lsr`, each beside plain SPLADE: the literal residual and the window."""

from __future__ import annotations

import torch

import sparseworks as sw
from sparseworks.evaluate import TopicCorpus
from sparseworks.retrieval.encoders import TermSide
from sparseworks.retrieval.encoders.heads import Mlm
from sparseworks.retrieval.encoders.slots import LiteralResidual
from sparseworks.retrieval.losses import InfoNCE
from sparseworks.retrieval.regularisers import Flops
from sparseworks.retrieval.train import train_retriever

CORPUS = TopicCorpus(topics=4, concepts=4, own=2, passing=1, asked=1, stop=2, names=120)
TOKENIZER = CORPUS.tokenizer()


def test_a_literal_residual_finds_names_that_training_never_saw(tiny):
    found = {}
    for name, side in (("plain", TermSide(Mlm())), ("literal", TermSide(Mlm(), importance=LiteralResidual()))):
        method = sw.method("splade").with_(
            query=side, document=side, query_regulariser=Flops(0.01), document_regulariser=Flops(0.01), loss=InfoNCE()
        )
        encoder = method.encoder(tiny.bert(TOKENIZER.get_vocab_size()), TOKENIZER)
        train_retriever(encoder, method, CORPUS.pairs(60), steps=60, batch_size=30, rate=3e-3)
        names = tiny.measure(encoder, CORPUS.by_name(50))
        words = tiny.measure(encoder, CORPUS.collection(60, 40))
        found[name] = names.first, words.ndcg
    assert found["literal"][0] > found["plain"][0] + 0.3  # exact names
    assert found["literal"][1] > found["plain"][1] - 0.03  # and no loss where synonyms are asked for


def test_from_a_dense_start_a_window_converges_where_the_same_weight_of_flops_stays_dense(tiny):
    corpus = TopicCorpus(topics=4, concepts=4, own=2, passing=1, asked=1, stop=2)
    tokenizer, found = corpus.tokenizer(), {}
    width = tokenizer.get_vocab_size()
    for window in (12, None):
        side = TermSide(Mlm(), window=window)
        method = sw.method("splade").with_(
            query=side, document=side, query_regulariser=Flops(0.01), document_regulariser=Flops(0.01), loss=InfoNCE()
        )
        model = tiny.bert(width)
        with torch.no_grad():
            model.cls.predictions.bias.fill_(0.7)  # nearly every term is open
        encoder = method.encoder(model, tokenizer)
        seen = train_retriever(encoder, method, corpus.pairs(2000), steps=200, batch_size=32, rate=1e-3)
        found[window] = tiny.measure(encoder, corpus.collection(100, 60))
        assert seen.nnz_document[0] > (0.8 * width if window is None else 10)
    assert found[12].ndcg > found[None].ndcg + 0.12
    assert 2 * found[12].nnz < found[None].nnz
