"""The scikit-learn face: its own conformance suite, and arrays and tensors that give the same codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import issparse
from sklearn.decomposition import SparseCoder as Theirs
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from sparseworks.codes.estimators import DictionaryLearning, SparseCoder
from sparseworks.core.budget import Residual
from sparseworks.core.codes import Codes
from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.testing.pursuit import planted


@pytest.mark.parametrize("estimator", [SparseCoder(), DictionaryLearning(max_iter=2)], ids=lambda e: type(e).__name__)
def test_scikit_learns_own_checks(estimator):
    failed = [r for r in check_estimator(estimator, on_fail=None, on_skip=None) if r["status"] == "failed"]
    assert {r["check_name"]: str(r["exception"]) for r in failed} == {}


def test_codes_are_scikit_learns_whether_arrays_or_tensors():
    d, _, y = planted()
    theirs = Theirs(d.numpy(), transform_algorithm="omp", transform_n_nonzero_coefs=4).transform(y.numpy())
    ours = SparseCoder(d.numpy(), n_nonzero_coefs=4).fit(y.numpy())
    sparse = ours.transform(y.numpy())
    assert issparse(sparse) and sparse.format == "csr"
    np.testing.assert_allclose(sparse.toarray(), theirs, atol=1e-10)
    codes = ours.transform(y.float())
    assert isinstance(codes, Codes) and codes.values.dtype == torch.float32
    np.testing.assert_allclose(codes.dense().numpy(), theirs, atol=1e-4)
    np.testing.assert_allclose(ours.inverse_transform(sparse), y.numpy(), atol=1e-8)
    torch.testing.assert_close(ours.inverse_transform(codes), y.float(), atol=1e-4, rtol=1e-4)


def test_other_methods_and_budgets():
    d, _, y = planted()
    by_error = SparseCoder(d, options={"budget": Residual(1e-8)}).fit(y).transform(y)
    assert by_error.kept().sum(1).tolist() == [4] * len(y)
    soft = SparseCoder(d, method="cel0_coding").fit(y).transform(y)
    assert 0 < soft.nnz < soft.values.shape[0] * soft.width


def test_a_dictionary_is_learnt_in_a_pipeline_and_from_a_seed():
    _, _, y = planted(signals=60)
    learn = DictionaryLearning(20, n_nonzero_coefs=3, max_iter=4, random_state=3)
    codes = make_pipeline(StandardScaler(), learn).fit_transform(y.numpy())
    assert codes.shape == (60, 20) and codes.nnz <= 180
    assert len(learn.error_) == learn.n_iter_ == 4 and learn.error_[-1] < learn.error_[0]
    assert list(learn.get_feature_names_out())[:2] == ["dictionarylearning0", "dictionarylearning1"]
    again = DictionaryLearning(20, n_nonzero_coefs=3, max_iter=4, random_state=3)
    torch.testing.assert_close(again.fit(y).components_, again.fit(y).components_)


def test_tensors_that_do_not_fit_are_refused():
    d, _, y = planted()
    coder = SparseCoder(d).fit(y)
    with pytest.raises(ShapeError, match="expects 48"):
        coder.transform(y[:, :5])
    with pytest.raises(DtypeError):
        coder.transform(y.half())
    with pytest.raises(ShapeError, match="do not fit"):
        SparseCoder(d[:, :7]).fit(y)
