"""Learned sparse retrievers: sides, regularisers and losses as their papers combine them.

Weights of regularisers are the papers' or their code's: of `splade` and what the unified framework made of it that framework's, whose T is a
third of its steps; of `l0_inference_free` the released ones; of `idf_flops` ours, within the released 0.002 (tuning) to 0.08. Those of
`mistral_splade` are ours. One model serves both sides of a retriever; the framework trains one for each where the sides differ.
"""

from __future__ import annotations

from sparseworks.core.published import Source
from sparseworks.retrieval.encoders.heads import Binary, ExpMlp, Mlm, Mlp, TermSide
from sparseworks.retrieval.encoders.method import add_encoder
from sparseworks.retrieval.encoders.slots import (
    EchoPooling,
    Idf,
    L2Norm,
    LastPooling,
    LiteralResidual,
    Log1p,
    Log1pTwice,
    MaxPooling,
    Relu,
    SumPooling,
)
from sparseworks.retrieval.losses import DistillKL, InfoNCE, MarginMSE
from sparseworks.retrieval.regularisers import Flops, MaskedFlops

_FRAMEWORK = Source("Nguyen, MacAvaney, Yates", 2023, "2303.13416", "A Unified Framework for Learned Sparse Retrieval")
_SPLADE = Source("Formal, Lassance, Piwowarski, Clinchant", 2021, "2109.10086", "SPLADE v2")
_THIRD = 1 / 3  # 50,000 of 150,000 steps, in SPLADE's code and the framework's
_MLM = TermSide(Mlm(), MaxPooling(), Log1p())
_MLM_BODY = TermSide(Mlm(), MaxPooling(special=False), Log1p())
_MLP = TermSide(Mlp(), MaxPooling(), Relu())
_MLP_QUERY = TermSide(Mlp(), SumPooling(), Relu())  # a term that a query repeats counts as often
_Q_MLP = TermSide(Mlp(), SumPooling(), Log1p())
_PRESENT = TermSide(Binary())
_LOOK_UP = TermSide(Binary(), importance=Idf())

add_encoder(
    "splade",
    _SPLADE,
    "Logits of a masked language model as term weights on both sides: terms are weighted and expanded, FLOPS keeps them few.",
    catalog=(199,),
    query=_MLM,
    document=_MLM,
    query_regulariser=Flops(0.1),
    document_regulariser=Flops(0.08),
    loss=MarginMSE(),
    ramp=_THIRD,
    when="Queries and documents use different words, and a model may run on every query.",
    when_not="Query latency matters: `splade_qmlp`, or an inference-free method, costs a small part of it. Training is short and queries are not known: from MiniLM, 600 "
    "steps on made-up queries (one seed), nDCG@10 was 0.371 on Cranfield (BM25 0.359) and 0.284 on NFCorpus (0.328), `idf_flops`' 0.379 and 0.323.",
)
add_encoder(
    "splade_doc",
    _SPLADE,
    "SPLADE's documents with queries that count as they are: no model at query time.",
    catalog=(199,),
    query=_PRESENT,
    document=_MLM,
    query_regulariser=None,
    document_regulariser=Flops(0.08),
    loss=MarginMSE(),
    ramp=_THIRD,
    when="No model can run on queries.",
    when_not="Queries hold many stop-words: every term counts the same; `idf_flops` weighs them by a table.",
)
add_encoder(
    "splade_qmlp",
    _FRAMEWORK,
    "SPLADE's documents, and queries of which only the own terms are weighted (the framework's qMLP).",
    catalog=(199,),
    query=_Q_MLP,
    document=_MLM_BODY,
    query_regulariser=None,
    document_regulariser=Flops(0.08),
    loss=MarginMSE(),
    ramp=_THIRD,
    when="Queries must have few terms, so that an index answers quickly: expansion of documents makes that of queries needless.",
    when_not="The documents cannot be encoded anew: only they are expanded here.",
)
add_encoder(
    "unicoil",
    Source("Lin, Ma", 2021, "2106.14807", "A Few Brief Notes on DeepImpact, COIL, and a Conceptual Framework"),
    "A weight for every term that is there, on both sides; documents may be expanded from outside beforehand.",
    catalog=(199,),
    query=_MLP_QUERY,
    document=_MLP,
    query_regulariser=None,
    document_regulariser=None,
    loss=InfoNCE(),
    when='Terms of the texts suffice, or an expansion model is at hand (`document_head="exp_mlp"`).',
    when_not="Queries use synonyms that no expansion brought in: terms that are absent have no weight.",
)
add_encoder(
    "unicoil_expanded",
    Source("Lin, Ma", 2021, "2106.14807", "A Few Brief Notes on DeepImpact, COIL, and a Conceptual Framework"),
    "uniCOIL over documents that `TermEncoder(expand=...)` expanded: doc2query, TILDE.",
    catalog=(199,),
    query=_MLP_QUERY,
    document=TermSide(ExpMlp(), MaxPooling(), Relu()),
    query_regulariser=None,
    document_regulariser=None,
    loss=InfoNCE(),
    when="A model that expands documents is at hand.",
    when_not="None is: the head itself adds no term.",
)
add_encoder(
    "deep_impact",
    Source("Mallia, Khattab, Suel, Tonellotto", 2021, "2104.12016", "Learning Passage Impacts for Inverted Indexes"),
    "Weights of the terms of expanded documents, queries that count as they are.",
    catalog=(199,),
    query=_PRESENT,
    document=TermSide(ExpMlp(), MaxPooling(), Relu()),
    query_regulariser=None,
    document_regulariser=None,
    loss=InfoNCE(in_batch=False),
    when="No model can run on queries, and documents were expanded beforehand.",
    when_not="Documents are not expanded: `splade_doc` does both at once. The head is the framework's, one linear map and the largest of a term's "
    "occurrences; the authors' has two layers and takes the first.",
)
add_encoder(
    "lsr_framework",
    _FRAMEWORK,
    "Sides, regularisers and supervision chosen one by one; as it stands the combination that its authors recommend: no query expansion.",
    catalog=(199,),
    query=_Q_MLP,
    document=_MLM_BODY,
    query_regulariser=None,
    document_regulariser=Flops(0.08),
    loss=MarginMSE(),
    ramp=_THIRD,
    when='A retriever is put together from parts: `method("lsr_framework", query_head="binary")`, or any of the named ones.',
    when_not="A published model is wanted as it is: take it by its name.",
)
add_encoder(
    "idf_flops",
    Source(
        "Geng, Wang, Ru, Yang",
        2024,
        "2411.04403",
        "Towards Competitive Search Relevance For Inference-Free Learned Sparse Retrievers",
    ),
    "Queries are a table of idf; the ranking gradient carries it, FLOPS does not, so that frequent terms leave documents first.",
    catalog=(48,),
    query=_LOOK_UP,
    document=_MLM,
    query_regulariser=None,
    document_regulariser=Flops(0.02, summed=True),
    loss=DistillKL(),
    when="No model can run on queries, and one or several teachers can score the training pairs. From MiniLM, 600 steps on made-up queries (one seed), nDCG@10 was "
    "0.379 on Cranfield, 0.381 with the 32 strongest terms of a document, and 0.323 on NFCorpus; BM25's 0.359, 0.320 and 0.328.",
    when_not="A model may run on queries and every point counts. Scores that begin further apart than the teachers' close terms: on 600 documents of NFCorpus "
    "nDCG@10 fell from 0.25 to 0.14 within 40 steps at a rate of 2e-4; begin nearer, with `loss=DistillKL(scale=)`.",
)
add_encoder(
    "l0_inference_free",
    Source("Shen, Geng, Yang", 2025, "2504.14839", "Exploring l0 Sparsification for Inference-free Sparse Retrievers"),
    "Documents that are short already are not penalised, and weights pass a second logarithm.",
    catalog=(234,),
    query=_LOOK_UP,
    document=TermSide(Mlm(), MaxPooling(), Log1pTwice()),
    query_regulariser=None,
    document_regulariser=MaskedFlops(0.08, summed=True, above=150),
    loss=DistillKL(in_batch=False),
    when="As `idf_flops`, with documents of very different lengths.",
    when_not="Documents have far fewer terms than `above`: then nothing is penalised. Or ranking is to gain: on fitted codes and on documents of "
    "one to four texts the spread of lengths narrowed at equal mean length, by a quarter in the latter, but nDCG@10 was level with that of plain "
    "FLOPS (three seeds, within 0.01). From MiniLM, 600 steps on made-up queries (one seed), it was 0.364 on Cranfield and 0.320 on NFCorpus, "
    "`idf_flops`' 0.379 and 0.323.",
)
add_encoder(
    "mistral_splade",
    Source(
        "Doshi, Kumar, Murthy, Vignesh, Sen",
        2024,
        "2408.11119",
        "Mistral-SPLADE: LLMs for better Learned Sparse Retrieval",
    ),
    "A causal model reads every text twice; the logits over the second copy are the term weights.",
    catalog=(200,),
    query=TermSide(Mlm(), EchoPooling(), Log1p()),
    document=TermSide(Mlm(), EchoPooling(), Log1p()),
    query_regulariser=Flops(0.1),
    document_regulariser=Flops(0.08),
    loss=InfoNCE(),
    when="The model at hand is causal, and what a word means is said after it: with one reading early tokens know only what stands before them. "
    "Where the last word of a text says what the others mean, recall@10 was 0.92 to 0.97 with two readings and 0.61 to 0.64 with one (three seeds, "
    "one layer trained from nothing); of the weight that early words gave to expansions, 0.92 to 1.00 and 0.59 to 0.65 went to what was meant.",
    when_not="The model reads both ways, or words mean the same wherever they stand: the second copy doubles the cost. Of two-layer models "
    "trained from nothing on a corpus of synonyms, the one that reads once ranked better (nDCG@10 0.90 against 0.58 after 250 steps), and where "
    "some words meant the same in both senses the lead of two readings was small or gone. Adapters and the quantised base are not here.",
)
add_encoder(
    "prosper_lsr",
    Source(
        "Song, Liu, Zhang, Guo, de Rijke, Li, Peng, Lv, Cheng",
        2025,
        "2510.18527",
        "LLMs as Sparse Retrievers: A Framework for First-Stage Product Search",
    ),
    "A residual keeps the literal terms of a text, and a window of its best terms is open from the first step, before FLOPS is at work.",
    catalog=(207,),
    query=TermSide(Mlm(), LastPooling(), Log1p(), L2Norm(), LiteralResidual(), window=256),
    document=TermSide(Mlm(), LastPooling(), Log1p(), importance=LiteralResidual(), window=512),
    query_regulariser=Flops(0.005),
    document_regulariser=Flops(0.001),
    loss=InfoNCE(),
    ramp=0.3,
    when="Texts hold names and numbers that training never saw, and must be found by them: in the test at least 0.3 more of them came first than "
    "without the residual. Or training starts from a model that opens nearly every term, and codes have to be short from the first step.",
    when_not="All terms are common ones and the start is sparse: plain SPLADE weighs them as well. Or the window is to rescue training: from a dense "
    "start of a small model (three seeds, the published weights) it held codes to 16 terms where 26 to 32 were open in the first twenty steps, "
    "but the residual alone converged as well (nDCG@10 0.66 to 0.68 beside 0.64 to 0.67, five terms each, the literal ones), and with the window alone "
    "every term closed, as with FLOPS alone in two of three. Its authors saw Hit@1 fall from 25 to 13 without it, with 150,000 terms. "
    "The residual has as many parameters as the model's output layer. Written after the paper alone; no code of its authors is known.",
)
