from __future__ import annotations

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
