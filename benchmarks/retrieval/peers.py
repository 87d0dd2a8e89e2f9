"""Other ways to search, each made of a scipy CSR of documents; each gives the K best ids of queries (scipy CSR)."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

K = 10
Search = Callable[[sp.csr_matrix], np.ndarray]


def torch_csr(documents: sp.csr_matrix) -> Search:
    """torch.sparse CSR times dense queries, then topk."""
    parts = (torch.from_numpy(documents.indptr), torch.from_numpy(documents.indices), torch.from_numpy(documents.data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the layout is in beta
        matrix = torch.sparse_csr_tensor(*parts, size=documents.shape)

    def search(queries: sp.csr_matrix) -> np.ndarray:
        dense = torch.from_numpy(queries.toarray()).T.contiguous()
        return (matrix @ dense).topk(K, dim=0).indices.T.numpy()

    return search


def bm25s_index(corpus: list[list[int]], terms: int) -> tuple[Search, sp.csr_matrix, str] | None:
    """bm25s on words as numbers, the documents' weights that it stores, and its back end; None if it is not installed."""
    if not find_spec("bm25s"):
        return None
    import bm25s

    backend = "numba" if find_spec("numba") else "numpy"
    model = bm25s.BM25(backend=backend)
    vocabulary = {str(t): t for t in range(terms)}
    model.index((corpus, vocabulary), show_progress=False)
    s = model.scores
    weights = sp.csc_matrix((s["data"], s["indices"], s["indptr"]), (len(corpus), len(s["indptr"]) - 1)).tocsr()

    def search(queries: sp.csr_matrix) -> np.ndarray:
        asked = [queries.indices[a:b].tolist() for a, b in zip(queries.indptr, queries.indptr[1:], strict=False)]
        return model.retrieve(asked, k=K, show_progress=False, return_as="documents", n_threads=1)

    return search, weights[:, :terms].astype(np.float32), f"bm25s {bm25s.__version__} ({backend})"


class Seismic:
    """pyseismic-lsr, built once and kept in a file."""

    def __init__(self, documents: sp.csr_matrix, postings: int, kept: Path) -> None:
        from seismic import SeismicDataset, SeismicIndex, get_seismic_string

        self.kind, file = get_seismic_string(), Path(f"{kept}.index.seismic")
        self.seconds = None
        if not file.is_file():
            data, start = SeismicDataset(), time.perf_counter()
            for d in range(documents.shape[0]):
                at = slice(documents.indptr[d], documents.indptr[d + 1])
                data.add_document(str(d), documents.indices[at].astype(str).astype(self.kind), documents.data[at])
            index = SeismicIndex.build_from_dataset(data, n_postings=postings, num_threads=2)
            self.seconds = time.perf_counter() - start
            kept.parent.mkdir(parents=True, exist_ok=True)
            index.save(str(kept))
            print(f"seismic built in {self.seconds:.0f} s", file=sys.stderr)
            del data, index
        self.index = SeismicIndex.load(str(file))

    def search(self, cut: int, heap: float) -> Search:
        """Its answers at these settings, in the order of the queries, on one thread."""

        def search(queries: sp.csr_matrix) -> np.ndarray:
            rows = [slice(a, b) for a, b in zip(queries.indptr, queries.indptr[1:], strict=False)]
            found = self.index.batch_search(
                queries_ids=np.array([str(q) for q in range(len(rows))], dtype=self.kind),
                query_components=[queries.indices[r].astype(str).astype(self.kind) for r in rows],
                query_values=[queries.data[r] for r in rows], k=K, query_cut=cut, heap_factor=heap, num_threads=1,
            )  # fmt: skip
            order = {int(a[0][0]): [int(hit[2]) for hit in a] for a in found if a}
            return np.array([(order.get(q, []) + [-1] * K)[:K] for q in range(len(rows))])

        return search
