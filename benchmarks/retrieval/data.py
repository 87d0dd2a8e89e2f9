"""Vectors like learned sparse ones, in any number, the same each time."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

TERMS, TOPICS = 30_522, 1000
AT_ONCE = 100_000


def draw(rows: int, per_row: int, seed: int, *, spread: float = 0.7, terms: int = TERMS) -> sp.csr_matrix:
    """Rows of about `per_row` log-normal weights: half of the terms from one of 1000 topics, half from a Zipf law."""
    topics = np.random.default_rng(1).integers(0, terms, (TOPICS, 200))
    parts = []
    for begin in range(0, rows, AT_ONCE):
        rng, n = np.random.default_rng([seed, begin]), min(AT_ONCE, rows - begin)
        zipf = (rng.random((n, per_row // 2)) ** 4 * terms).astype(np.int32)
        topic = topics[rng.integers(0, TOPICS, n)]
        own = np.take_along_axis(topic, rng.integers(0, topics.shape[1], (n, per_row - per_row // 2)), 1)
        columns = np.concatenate([zipf, own.astype(np.int32)], 1)
        weights = rng.lognormal(0, spread, columns.shape).astype(np.float32)
        m = sp.csr_matrix((weights.ravel(), columns.ravel(), np.arange(0, n * per_row + 1, per_row)), (n, terms))
        m.sum_duplicates()
        parts.append(m)
    return sp.vstack(parts, format="csr") if len(parts) > 1 else parts[0]


def tokens(rows: int, per_row: int, seed: int, *, terms: int = TERMS) -> list[list[int]]:
    """Texts as numbers of words that follow a Zipf law."""
    rng = np.random.default_rng(seed)
    return (rng.random((rows, per_row)) ** 3 * terms).astype(int).tolist()
