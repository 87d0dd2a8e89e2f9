from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparseworks.core.errors import BudgetError, DtypeError, KernelError, NonFiniteError, ShapeError
from sparseworks.exec.native import features
from sparseworks.exec.search import InvertedIndex, Rows, TwoStageIndex, exact, two_stage


@pytest.fixture(params=["reference", *features()["built"]])
def kernels(request, monkeypatch, running):
    """The reference, and the compiled kernels of every instruction set."""
    if request.param == "reference":
        monkeypatch.setattr(exact, "native", lambda: None)
        monkeypatch.setattr(two_stage, "native", lambda: None)
        yield
        return
    with running(request.param):
        yield


def whole(rows, width, density, seed, signed=True):
    """Small whole numbers: sums are exact in any order, and ties are common."""
    rng = np.random.default_rng(seed)
    m = sp.random(rows, width, density, "csr", rng=rng, data_rvs=lambda n: rng.integers(1, 4, n).astype(np.float32))
    if signed:
        m.data *= rng.choice([-1, 1], len(m.data))
    return m.astype(np.float32)


def expected(documents, queries, k):
    scores = (queries @ documents.T).toarray()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("size", [1, 7, 64, 65536])
@pytest.mark.parametrize(("n", "width", "density", "k"), [(1, 1, 1, 1), (61, 17, 0.2, 10), (300, 40, 0.05, 7), (97, 5, 1, 97),
                                                          (50, 9, 0, 3)])  # fmt: skip
def test_exact_equals_scipy_with_ties(kernels, n, width, density, k, size):
    documents, queries = whole(n, width, density, 1), whole(19, width, 0.4, 2)
    scores, ids = InvertedIndex(documents, size=size).search(queries, k)
    want, order = expected(documents, queries, k)
    assert np.array_equal(scores.numpy(), want) and np.array_equal(ids.numpy(), order)


def test_exact_with_real_values_up_to_rounding(kernels):
    rng = np.random.default_rng(3)
    documents = sp.random(500, 80, 0.2, "csr", rng=rng, dtype=np.float32)
    queries = sp.random(5, 80, 0.3, "csr", rng=rng, dtype=np.float32)
    scores, ids = InvertedIndex(documents, size=128).search(queries, 10)
    want, order = expected(documents, queries, 10)
    np.testing.assert_allclose(scores, want, rtol=1e-5)
    assert np.array_equal(ids.numpy(), order)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("width", [30, 70000])
def test_two_stages_are_exact_where_nothing_is_cut(kernels, dtype, width):
    documents, queries = whole(200, 30, 0.2, 4, signed=False), whole(9, 30, 0.3, 5, signed=False)
    documents.resize(200, width), queries.resize(9, width)
    index = TwoStageIndex(documents, postings=200, dtype=dtype)
    scores, ids = index.search(queries, 10, terms=30, candidates=200)
    want, order = expected(documents, queries, 10)
    assert np.array_equal(scores.numpy(), want) and np.array_equal(ids.numpy(), order)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_documents_on_large_pages_are_the_same(kernels, dtype, monkeypatch):
    documents, queries = whole(200, 30, 0.2, 4, signed=False), whole(9, 30, 0.3, 5, signed=False)
    small = TwoStageIndex(documents, postings=50, dtype=dtype)
    monkeypatch.setattr(two_stage, "_LARGE", 4096)
    large = TwoStageIndex(documents, postings=50, dtype=dtype)
    assert large._values.nbytes >= 2 * 1024 and torch.equal(large._values, small._values)
    for a, b in zip(small.search(queries, 5), large.search(queries, 5), strict=True):
        assert torch.equal(a, b)


def test_cuts_lower_recall_and_scores_stay_exact(kernels):
    documents, queries = whole(400, 30, 0.3, 6, signed=False), whole(20, 30, 0.5, 7, signed=False)
    scores, ids = TwoStageIndex(documents, postings=20).search(queries, 10, terms=3, candidates=15)
    all_scores = (queries @ documents.T).toarray()
    found = ids.numpy() >= 0
    assert found.any()
    rows = np.nonzero(found)[0]
    assert np.array_equal(scores.numpy()[found], all_scores[rows, ids.numpy()[found]])
    assert not np.array_equal(ids.numpy(), expected(documents, queries, 10)[1])


def test_missing_candidates_are_marked_and_empty_queries_answered(kernels):
    documents = sp.csr_matrix(np.array([[1.0, 0], [0, 2]], np.float32))
    queries = sp.csr_matrix(np.array([[1.0, 0], [0, 0]], np.float32))
    scores, ids = TwoStageIndex(documents).search(queries, 2)
    assert ids.tolist() == [[0, -1], [-1, -1]] and scores[0, 0] == 1 and scores[1, 0] == -torch.inf
    assert InvertedIndex(documents).search(queries, 2)[1].tolist() == [[0, 1], [0, 1]]
    assert InvertedIndex(documents).search(queries[:0], 2)[1].shape == (0, 2)
    assert InvertedIndex(documents[:0]).search(queries, 0)[1].shape == (2, 0)


def test_full_impacts_do_not_overflow(kernels):
    documents = sp.csr_matrix(np.ones((3, 64), np.float32))
    scores, ids = TwoStageIndex(documents).search(documents[:1], 3, terms=64)
    assert ids.tolist() == [[0, 1, 2]] and scores.tolist() == [[64, 64, 64]]


def test_refusals():
    good = ([0, 1, 2], [0, 1], [1.0, 2.0])
    t = [torch.tensor(x) for x in good]
    assert len(Rows.of(t, 2)) == 2
    for ptr, idx, val, error in [
        ([0, 2], [1, 0], [1.0, 1.0], ShapeError), ([0, 2], [0, 0], [1.0, 1.0], ShapeError),
        ([0, 1], [2], [1.0], ShapeError), ([0, 1], [-1], [1.0], ShapeError), ([0, 2], [0], [1.0], ShapeError),
        ([0, 2, 1], [0], [1.0], ShapeError), ([], [], [], ShapeError), ([0, 1], [0], [float("nan")], NonFiniteError),
    ]:  # fmt: skip
        with pytest.raises(error):
            Rows(torch.tensor(ptr, dtype=torch.long), torch.tensor(idx, dtype=torch.long), torch.tensor(val), 2)
    with pytest.raises(ShapeError):
        Rows.of(3)
    index = InvertedIndex(t, 2)
    with pytest.raises(BudgetError):
        index.search(t, 3)
    with pytest.raises(ShapeError):
        index.search(Rows(*t, 3), 1)
    index._values.mul_(2)
    with pytest.raises(KernelError):
        index.search(t, 1)
    with pytest.raises(BudgetError):
        InvertedIndex(t, 2, size=70000)
    with pytest.raises(BudgetError):
        TwoStageIndex(t, 2, postings=0)
    with pytest.raises(DtypeError):
        TwoStageIndex(t, 2, dtype=torch.float64)
    with pytest.raises(NonFiniteError):
        TwoStageIndex((t[0], t[1], torch.tensor([1.0, 1e6])), 2)
    two = TwoStageIndex(t, 2)
    for bad in ({"k": 5, "candidates": 2}, {"k": 1, "terms": 65}):
        with pytest.raises(BudgetError):
            two.search(t, **bad)
    two._posting.add_(9)
    with pytest.raises(KernelError):
        two.search(t, 1)


def test_rows_are_copies_and_writes_to_them_are_noticed(kernels):
    ptr, ids, values = np.array([0, 2, 3]), np.array([0, 4, 1]), np.array([1.0, 2.0, 3.0], dtype=np.float32)
    source = sp.csr_matrix((values, ids, ptr), shape=(2, 5))
    rows, index = Rows.of(source), InvertedIndex(source)
    before = index.search(rows, 2)
    source.indices[:] = 2**30
    source.indptr[1] = 2**30
    assert all(torch.equal(a, b) for a, b in zip(before, index.search(rows, 2), strict=True))
    rows.indices[0] = 4
    with pytest.raises(KernelError, match="written to"):
        index.search(rows, 2)


def test_an_index_is_built_and_asked_in_inference_mode(kernels):
    documents = whole(30, 20, 0.3, 0)
    with torch.inference_mode():
        scores, _ = InvertedIndex(documents).search(whole(3, 20, 0.3, 1), 4)
        TwoStageIndex(documents).search(whole(3, 20, 0.3, 1), 4)
    assert np.array_equal(scores.numpy(), expected(documents, whole(3, 20, 0.3, 1), 4)[0])
