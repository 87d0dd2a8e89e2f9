"""Top-10 sparse inner products: how many queries a second, exactly and in two stages, beside scipy and other peers?

Data: documents and queries draw half of their terms from a topic and half from a Zipf law; synthetic, so recall on real vectors
must be measured anew. Recall hangs on how the weight of a query is spread, so there are two sets of queries: `even`, whose ten
strongest terms hold half of the weight, and `concentrated`, where they hold three quarters, nearer to learned sparse vectors
(concentration of importance: Bruch et al., 2024, arXiv 2404.18812).

Lines are microseconds of CPU time a query, each of ours beside each peer. The ceiling of the exact scan is that of reading its
postings once (two bytes of document and four of weight); the two-stage search leaves most of them out and is not bound by them.

Peers that are not installed are named and left out: numba, sparse_dot_topn, pyseismic-lsr.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
from common import Line
from search_peers import FEW, K, peers

from sparseworks.exec import measure
from sparseworks.exec.search import InvertedIndex, Rows, TwoStageIndex

CUTS, LENGTHS, KEPT = (5, 8, 12, 20), (500, 1000, 4000), (50, 100, 200)


def draw(
    rng: np.random.Generator, rows: int, terms: int, per_row: int, topics: np.ndarray, spread: float = 0.7
) -> sp.csr_matrix:
    """Rows of about `per_row` log-normal weights, half of the terms from one topic."""
    zipf = (rng.random((rows, per_row // 2)) ** 4 * terms).astype(np.int64)
    topic = topics[rng.integers(0, len(topics), rows)]
    own = np.take_along_axis(topic, rng.integers(0, topics.shape[1], (rows, per_row - per_row // 2)), 1)
    columns = np.concatenate([zipf, own], 1)
    weights = rng.lognormal(0, spread, columns.shape).astype(np.float32)
    m = sp.csr_matrix((weights.ravel(), (np.repeat(np.arange(rows), per_row), columns.ravel())), (rows, terms))
    m.sum_duplicates()
    return m


def main() -> None:
    given = common.arguments(__doc__ or "")
    n, terms, asked = (5000, 2000, 32) if given.quick else (200_000, 30_000, 512)
    rng = np.random.default_rng(0)
    topics = rng.integers(0, terms, (50 if given.quick else 1000, 200))
    documents = draw(rng, n, terms, 120, topics)
    sets = {"even": draw(rng, asked, terms, 40, topics), "concentrated": draw(rng, asked, terms, 40, topics, 1.4)}
    lengths = np.bincount(documents.indices, minlength=terms)
    print(f"{n} documents, {documents.nnz / n:.0f} entries each, {CUTS=} terms, {LENGTHS=} postings, {KEPT=} re-ranked")
    exact = InvertedIndex(documents)
    indexes = {length: TwoStageIndex(documents, postings=length) for length in LENGTHS}
    others, absent = peers(documents)
    print("absent peers:", ", ".join(absent) or "none")
    lines = []
    for name, queries in sets.items():
        rows = Rows.of(queries)
        postings = lengths[queries.indices].sum() / asked
        truth = exact.search(rows, K)[1].numpy()
        methods = {p: (run, queries[:FEW]) for p, run in others.items()}
        methods["exact"] = (lambda q, r=rows: exact.search(r, K)[1].numpy(), queries)
        for length, cut, kept in itertools.product(LENGTHS, CUTS, KEPT):
            methods[f"two-stage {cut}/{length}/{kept}"] = (
                lambda q, i=indexes[length], r=rows, c=cut, m=kept: i.search(r, K, terms=c, candidates=m)[1].numpy(),
                queries,
            )
        rounds = 3 if given.quick else min(given.rounds, 5)
        bound = 1e6 * 6 * postings / measure.ceilings().bandwidth
        print(f"{name}: {postings:.0f} postings a query, ten strongest terms {mass(queries):.0%}")
        lines += measured(name, methods, list(others), truth, rounds, bound)
    common.show(lines, "Top-10 search, microseconds a query")
    common.store("search", lines, given.json, setting={"absent peers": ", ".join(absent), "peers see queries": FEW})


def mass(queries: sp.csr_matrix) -> float:
    """Share of a query's weight that its ten strongest terms hold, on average."""
    rows = [np.sort(queries[i].data) for i in range(queries.shape[0])]
    return float(np.mean([r[-10:].sum() / r.sum() for r in rows]))


def measured(
    queries: str,
    methods: dict[str, tuple[Callable, sp.csr_matrix]],
    peers: list[str],
    truth: np.ndarray,
    rounds: int,
    bound: float,
) -> list[Line]:
    """Each of ours beside each peer, in rounds over all methods, with its recall."""
    recalls = {name: recall(run(given), truth) for name, (run, given) in methods.items()}
    seconds = {name: [] for name in methods}
    for _ in range(rounds):
        for name, (run, given) in methods.items():
            start = time.process_time_ns()
            run(given)
            seconds[name].append((time.process_time_ns() - start) / 1e3 / given.shape[0])
    timings = measure.Comparison({name: measure.Timing.of(s) for name, s in seconds.items()})
    return [
        common.line(f"{queries}, recall {recalls[m]:.4f}", timings, m, peer, bound if m == "exact" else None)
        for m in methods
        if m not in peers
        for peer in peers
    ]


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true K that were found."""
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=False)]))


if __name__ == "__main__":
    main()
