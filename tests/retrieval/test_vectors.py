from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparseworks.core.codes import Codes
from sparseworks.core.errors import CheckpointError, NonFiniteError, ShapeError
from sparseworks.exec.search.rows import dense
from sparseworks.retrieval import SparseVectors
from sparseworks.testing.index import example_vectors


def test_vectors_come_from_codes_matrices_and_terms():
    z = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0, 0, 0, 0], [3, 0, 0, 0]])
    for given in (Codes.from_dense(z), sp.csr_matrix(z.numpy()), sp.coo_matrix(z.numpy())):
        assert torch.equal(dense(SparseVectors.of(given), 0, 3), z)
    terms = SparseVectors.of_terms([{3: 1.0, 1: 2.0}, {}, {0: 3}], 4)
    assert torch.equal(dense(terms, 0, 3), z) and SparseVectors.of(terms) is terms
    assert SparseVectors.of_terms([], 4).ptr.tolist() == [0]


def test_rows_are_taken_and_joined():
    vectors = example_vectors(20, 50, 0)
    at = torch.tensor([5, 0, 5])
    assert torch.equal(dense(vectors.take(at), 0, 3), dense(vectors, 0, 20)[at])
    joined = SparseVectors.join([vectors.take(slice(0, 9)), vectors.take(slice(9, None))])
    assert torch.equal(joined.indices, vectors.indices) and torch.equal(joined.ptr, vectors.ptr)
    with pytest.raises(ShapeError, match="one width"):
        SparseVectors.join([vectors, example_vectors(1, 60, 0)])


@pytest.mark.parametrize("ids", [None, ["a", "ü 文", ""]])
def test_a_file_brings_them_back(tmp_path, ids):
    vectors = example_vectors(3, 70_000, 0)
    again, names = SparseVectors.load(vectors.save(tmp_path / "v.safetensors", ids))
    assert names == ids and again.width == 70_000
    assert all(torch.equal(getattr(again, n), getattr(vectors, n)) for n in ("ptr", "indices", "values"))


def test_refusals(tmp_path):
    vectors = example_vectors(3, 50, 0)
    with pytest.raises(ShapeError, match="2 ids"):
        vectors.save(tmp_path / "v.safetensors", ["a", "b"])
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Cannot write"):
        vectors.save(tmp_path / "file" / "v.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        SparseVectors.load(tmp_path / "no.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no sparse vectors"):
        SparseVectors.load(tmp_path / "other.safetensors")
    with pytest.raises(NonFiniteError):
        SparseVectors.of(sp.csr_matrix(np.array([[np.nan]])))
