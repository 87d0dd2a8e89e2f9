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
    when="Embeddings of a finished model are to become very short, without training it: MiniLM's of NFCorpus in 96 bytes (16 entries) gave "
    "nDCG@10 0.23, a Matryoshka map in as many (24 dimensions) 0.18, each after 600 steps on made-up queries.",
    when_not="The bytes of k floats and more are at hand, as an entry has an index as well: at 192 bytes it was 0.24 against the map's 0.26. "
    "Short trainings: after 142 steps the codes were behind at every size there.",
)
