"""Top-10 sparse inner products: how many queries a second, exactly and in two stages, beside scipy and other peers?

Data: documents and queries draw half of their terms from a topic and half from a Zipf law; synthetic, so recall on real vectors
must be measured anew.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

from sparseworks.exec.search import InvertedIndex, Rows, TwoStageIndex

K = 10


def draw(rng: np.random.Generator, rows: int, terms: int, per_row: int, topics: np.ndarray) -> sp.csr_matrix:
    """Rows of about `per_row` log-normal weights, half of the terms from one topic."""
    zipf = (rng.random((rows, per_row // 2)) ** 4 * terms).astype(np.int64)
    topic = topics[rng.integers(0, len(topics), rows)]
    own = np.take_along_axis(topic, rng.integers(0, topics.shape[1], (rows, per_row - per_row // 2)), 1)
    columns = np.concatenate([zipf, own], 1)
    weights = rng.lognormal(0, 0.7, columns.shape).astype(np.float32)
    m = sp.csr_matrix((weights.ravel(), (np.repeat(np.arange(rows), per_row), columns.ravel())), (rows, terms))
    m.sum_duplicates()
    return m


def scipy_top(documents: sp.csr_matrix, queries: sp.csr_matrix) -> np.ndarray:
    """The peer: a matrix-vector product a query, then a partition."""
    found = []
    for q in range(queries.shape[0]):
        scores = documents @ queries[q].toarray().ravel()
        top = np.argpartition(-scores, K)[:K]
        found.append(top[np.argsort(-scores[top])])
    return np.array(found)


def main() -> None:
    given = common.arguments(__doc__ or "")
    n, terms, asked = (5000, 2000, 32) if given.quick else (200_000, 30_000, 512)
    rng = np.random.default_rng(0)
    topics = rng.integers(0, terms, (50 if given.quick else 1000, 200))
    documents, queries = draw(rng, n, terms, 120, topics), draw(rng, asked, terms, 40, topics)
    rows = Rows.of(queries)
    lengths = np.bincount(documents.indices, minlength=terms)
    postings = lengths[queries.indices].sum() / asked
    print(f"{n} documents, {documents.nnz / n:.0f} entries each, {postings:.0f} postings a query")
    few = queries[:8]
    runs: dict[str, Callable[[], object]] = {"scipy": lambda: scipy_top(documents, few)}
    truth = InvertedIndex(documents).search(rows, K)[1].numpy()
    for size in (8192, 16384, 32768):
        index = InvertedIndex(documents, size=size)
        runs[f"exact {size}"] = lambda index=index: index.search(rows, K)
    recalls = {}
    indexes = {length: TwoStageIndex(documents, postings=length) for length in (1000, 2000, 8000)}
    for cut, length, kept in ((20, 8000, 400), (12, 2000, 200), (8, 2000, 200), (8, 1000, 100), (5, 1000, 100)):
        name = f"two-stage {cut}/{length}/{kept}"
        runs[name] = lambda i=indexes[length], c=cut, m=kept: i.search(rows, K, terms=c, candidates=m)
        ids = indexes[length].search(rows, K, terms=cut, candidates=kept)[1].numpy()
        recalls[name] = np.mean([len(set(a) & set(b)) / K for a, b in zip(ids, truth, strict=True)])
    seconds = {name: [] for name in runs}
    for _ in range(3 if given.quick else given.rounds):
        for name, run in runs.items():
            seconds[name].append(_cpu(run))
    per_query = {name: np.median(s) / (8 if name == "scipy" else asked) for name, s in seconds.items()}
    table = [
        (name, f"{1 / s:.0f}", f"{recalls.get(name, 1):.4f}", f"{per_query['scipy'] / s:.1f}x")
        for name, s in per_query.items()
    ]
    common.table("Search, queries a CPU second", ("method", "queries/s", "recall@10", "x scipy"), table)
    common.store("search", [], given.json, table=table)


def _cpu(run: Callable[[], object]) -> float:

    start = time.process_time_ns()
    run()
    return (time.process_time_ns() - start) / 1e9


if __name__ == "__main__":
    main()
