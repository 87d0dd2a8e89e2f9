"""Several rankings as one, feedback, and an index over labels."""

from __future__ import annotations

from functools import partial

from sparseworks.core.published import Source
from sparseworks.core.routine import add_routine
from sparseworks.retrieval.method import RetrievalRoutine

_add = partial(add_routine, RetrievalRoutine)

_add(
    "bm25",
    "retrieval.bm25:BM25",
    "object=term score=idf*saturation pattern=terms_present budget=none schedule=at_indexing execution=inverted_index",
    Source("Robertson, Zaragoza", 2009, "", "The Probabilistic Relevance Framework: BM25 and Beyond"),
    "BM25 in five variants as sparse vectors whose dot product is the score.",
    when="Text search without a model, and the baseline of every learned one.",
    when_not="Queries and documents use different words for the same thing.",
)
_add(
    "feedback_interpolation",
    "retrieval.fusion:FeedbackSearch",
    "object=score_list score=minmax_sum pattern=none budget=depth schedule=pre|post|both execution=two_indexes",
    Source(
        "Li, Wang, Zhuang, Mourad, Ma, Lin, Zuccon",
        2022,
        "2205.00235",
        "To Interpolate or not to Interpolate: PRF, Dense and Sparse Retrievers",
    ),
    "Dense retrieval with vector feedback, interpolated with a sparse run before it, after it, or both.",
    catalog=(209,),
    when="Some queries need exact terms and others synonyms, and both a sparse and a dense index are there.",
    when_not="One of the two runs is poor: interpolation then costs what it should add.",
)
_add(
    "hypercube",
    "retrieval.labels:LabelCube",
    "object=label_cell score=match_count pattern=inverted_list_per_dimension budget=top_k repair=semantic_fallback execution=lookup",
    Source("Shi, Zhang, Zhou, et al.", 2025, "", "Hypercube-Based Retrieval-Augmented Generation"),
    "An index over label dimensions; documents are ranked by how many matches of the query's labels they have.",
    catalog=(206,),
    when="Documents carry places, dates, people or themes, and queries ask for several at once.",
    when_not="No labels are at hand: their extraction, by rules or a language model, is not part of this.",
)
_add(
    "multi_path",
    "retrieval.fusion:Paths",
    "object=candidate score=multi_path pattern=union budget=depth_per_path repair=re_ranking execution=several_indexes",
    Source(
        "Wang, Chi, Tai, et al.",
        2025,
        "",
        "FinSage: A Multi-aspect RAG System for Financial Filings Question Answering",
    ),
    "The union of what several retrievers bring, ranked anew.",
    catalog=(17,),
    when="Retrievers fail on different queries, and a re-ranker can afford a few hundred candidates.",
    when_not="The system of the paper is wanted: its language model, its re-ranker's training and its filings are not here.",
)
