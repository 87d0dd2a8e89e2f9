"""Other ways to search sparse vectors, for `search.py`: each takes queries (scipy CSR) and gives the K best ids of each."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import scipy.sparse as sp

K = 10
FEW = 32  # queries that peers are timed on

Search = Callable[[sp.csr_matrix], np.ndarray]


def peers(documents: sp.csr_matrix) -> tuple[dict[str, Search], list[str]]:
    """The peers that are installed, and the names of those that are not."""
    known = {"numba": numba_index, "sparse_dot_topn": topn, "seismic": seismic}
    found = {name: make(documents) for name, make in known.items() if find_spec(name)}
    return {"scipy": lambda q: scipy_top(documents, q)} | found, [name for name in known if name not in found]


def scipy_top(documents: sp.csr_matrix, queries: sp.csr_matrix) -> np.ndarray:
    """A matrix-vector product a query, then a partition."""
    return np.array([_best(documents @ queries[q].toarray().ravel()) for q in range(queries.shape[0])])


def numba_index(documents: sp.csr_matrix) -> Search:
    """An inverted index in numba, every posting, then a partition."""
    import numba

    lists = documents.tocsc()

    @numba.njit
    def add(scores, ptr, ids, values, terms, weights):
        for t in range(len(terms)):
            for p in range(ptr[terms[t]], ptr[terms[t] + 1]):
                scores[ids[p]] += weights[t] * values[p]

    def one(query: sp.csr_matrix) -> np.ndarray:
        scores = np.zeros(documents.shape[0], np.float32)
        add(scores, lists.indptr, lists.indices, lists.data, query.indices, query.data)
        return _best(scores)

    return lambda queries: np.array([one(queries[q]) for q in range(queries.shape[0])])


def topn(documents: sp.csr_matrix) -> Search:
    """The K best of the sparse product, by sparse_dot_topn on one thread."""
    from sparse_dot_topn import sp_matmul_topn

    columns = documents.T.tocsr()

    def search(queries: sp.csr_matrix) -> np.ndarray:
        found = sp_matmul_topn(queries, columns, top_n=K, sort=True, n_threads=1)
        return np.array([found.indices[a:b] for a, b in zip(found.indptr, found.indptr[1:], strict=False)])

    return search


def seismic(documents: sp.csr_matrix) -> Search:
    """Seismic with 1000 postings a list, five terms of the query, heap factor 0.9, one thread. Its build takes minutes."""
    from seismic import SeismicDataset, SeismicIndex, get_seismic_string

    kind = get_seismic_string()
    data = SeismicDataset()
    for d in range(documents.shape[0]):
        at = slice(documents.indptr[d], documents.indptr[d + 1])
        data.add_document(str(d), documents.indices[at].astype(str).astype(kind), documents.data[at])
    index = SeismicIndex.build_from_dataset(data, n_postings=1000)

    def search(queries: sp.csr_matrix) -> np.ndarray:
        rows = [slice(a, b) for a, b in zip(queries.indptr, queries.indptr[1:], strict=False)]
        ids = np.array([str(q) for q in range(len(rows))], dtype=kind)
        found = index.batch_search(
            queries_ids=ids, query_components=[queries.indices[r].astype(str).astype(kind) for r in rows],
            query_values=[queries.data[r] for r in rows], k=K, query_cut=5, heap_factor=0.9, num_threads=1,
        )  # fmt: skip
        order = {int(answers[0][0]): [int(a[2]) for a in answers] for answers in found}
        return np.array([order[q] for q in range(len(rows))])

    return search


def _best(scores: np.ndarray) -> np.ndarray:
    top = np.argpartition(-scores, K)[:K]
    return top[np.argsort(-scores[top])]
