"""Sparse codes of embeddings: a regulariser that spreads them, and an autoencoder that replaces shorter vectors."""

from __future__ import annotations

from functools import partial

from sparseworks.core.published import Source
from sparseworks.core.routine import add_routine
from sparseworks.retrieval.method import RetrievalRoutine

_add = partial(add_routine, RetrievalRoutine)

_add(
    "flops_reg",
    "retrieval.regularisers:Flops",
    "object=embedding_dimension score=mean_activation pattern=unstructured budget=lambda schedule=quadratic_ramp "
    "repair=none execution=inverted_index",
    Source(
        "Paria, Yeh, Yen, Xu, Ravikumar, Poczos",
        2020,
        "2004.05665",
        "Minimizing FLOPs to Learn Efficient Sparse Representations",
    ),
    "A differentiable stand-in for the multiplications of a sparse dot product: codes become sparse, and use all dimensions alike.",
    catalog=(245,),
    when="Embeddings are to be searched by an inverted index, whose cost is that of its longest lists.",
    when_not="Codes are compared one to one: then only their number of entries counts, and l1 serves.",
)
_add(
    "csr",
    "retrieval.csr:train_csr",
    "object=code score=pre_activation pattern=topk_per_item budget=k schedule=throughout repair=aux_k+mse_4k "
    "execution=sparse_dot|inverted_index",
    Source("Wen et al.", 2025, "2503.01776", "Beyond Matryoshka: Revisiting Sparse Coding for Adaptive Representation"),
    "A top-k autoencoder on frozen embeddings, whose codes of k entries stand for vectors of k dimensions.",
    catalog=(249,),
    when="Embeddings of a finished model are to take few bytes, or few products in search, without training it: with MiniLM's of Cranfield and NFCorpus codes of "
    "16 entries, 96 bytes, gave nDCG@10 0.370 and 0.282, a Matryoshka map of 24 dimensions 0.333 and 0.164, the whole embeddings of 1536 bytes 0.395 and 0.300.",
    when_not="384 bytes and more may be spent: a linear map trained to be cut was ahead there (0.400 and 0.300 beside 0.391 and 0.293).",
)
