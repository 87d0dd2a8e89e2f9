"""Indexes: exact over every posting or with bounds, approximate by blocks or in two stages."""

from __future__ import annotations

from sparseworks.core.published import Source
from sparseworks.retrieval.method import add_index
from sparseworks.retrieval.search import BlockMaxWand, MaxScore, PostingBlocks, Postings, TwoStage

EXHAUSTIVE = add_index(
    "exhaustive_postings",
    Postings(),
    Source("folklore", 0),
    "Every posting of the query's terms is added up: exact, and the baseline of the others.",
    when="Up to some hundred thousand documents, whenever nothing may be missed, or weights may be negative.",
    when_not="Queries have many frequent terms and millions of documents are searched.",
)
MAX_SCORE = add_index(
    "max_score",
    MaxScore(),
    Source("Turtle, Flood", 1995, title="Query evaluation: strategies and optimizations"),
    "Exact, scoring only documents that a bound over whole lists does not rule out.",
    when="Few terms a query, of very different weight, as in BM25 over raw text.",
    when_not="Up to 100,000 documents (BM25 queries of 8 words: 178 against 64 µs for all postings), and learned sparse queries of dozens of terms at any size: their bounds rule out little.",
)
BLOCK_MAX_WAND = add_index(
    "block_max_wand",
    BlockMaxWand(),
    Source("Ding, Suel", 2011, title="Faster top-k document retrieval using block-max indexes"),
    "Exact, skipping documents whose blocks of postings cannot reach the k-th score.",
    when="As max_score, where values within a list differ much and k is small.",
    when_not="Up to 100,000 documents (BM25 queries of 8 words: 339 against 64 µs for all postings), queries of dozens of terms, or large k.",
)
SEISMIC = add_index(
    "seismic",
    PostingBlocks(),
    Source(
        "Bruch, Nardini, Rulli, Venturini",
        2024,
        "2404.18812",
        "Efficient Inverted Indexes for Approximate Retrieval over Learned Sparse Representations",
    ),
    "Approximate: pruned lists in blocks of like documents, opened in the order of their summaries, scored exactly.",
    catalog=(201,),
    when="Learned sparse vectors of at least some hundred thousand documents, and a recall of 0.9 to 0.99 is enough.",
    when_not="Few documents (adding up all postings is faster), exact results, negative weights, or filters that few documents pass.",
)
TWO_STAGE = add_index(
    "two_stage",
    TwoStage(),
    Source("folklore", 0),
    "Approximate: the strongest postings of the strongest terms vote in whole numbers, the best candidates are scored exactly.",
    when="As seismic, where an index must be built fast.",
    when_not="Weight is spread evenly over many terms of a query: the strongest few then say little.",
)
