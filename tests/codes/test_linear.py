"""scikit-learn's own checks, and equality with its lasso."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn import linear_model
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from sparseworks.codes.linear import ElasticNet, Lasso, LassoCV, SparseRegressor
from sparseworks.core.errors import DtypeError, NonFiniteError, RecipeError, ShapeError
from sparseworks.solve.penalties import L1, MCP, Group

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 30))
Y = X[:, :4] @ np.array([3.0, -2.0, 1.0, 4.0]) + 0.3 * RNG.standard_normal(60) + 5


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([Lasso(), ElasticNet(), SparseRegressor(), LassoCV(n_alphas=4, cv=2)])
def test_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("positive", [False, True])
def test_the_lasso_is_scikit_learns(positive):
    ours = Lasso(0.1, positive=positive, tol=1e-9).fit(X, Y)
    theirs = linear_model.Lasso(0.1, positive=positive, tol=1e-9).fit(X, Y)
    assert np.allclose(ours.coef_, theirs.coef_, atol=1e-6) and ours.intercept_ == pytest.approx(theirs.intercept_)
    assert ours.proves_ == "duality gap" and float(ours.certificate_.max()) <= 1e-9


def test_the_elastic_net_is_scikit_learns_and_targets_are_apart():
    both = ElasticNet(0.2, 0.6, tol=1e-9).fit(X, np.stack([Y, -2 * Y], 1))
    theirs = linear_model.ElasticNet(0.2, l1_ratio=0.6, tol=1e-9).fit(X, Y)
    assert both.coef_.shape == (2, 30) and np.allclose(both.coef_[0], theirs.coef_, atol=1e-5)
    assert both.predict(X).shape == (60, 2)


def test_cross_validation_chooses_near_scikit_learns_alpha():
    ours = LassoCV(n_alphas=10, cv=3, tol=1e-8).fit(X, Y)
    theirs = linear_model.LassoCV(alphas=10, cv=3, tol=1e-8, max_iter=100000).fit(X, Y)
    assert np.allclose(ours.alphas_, theirs.alphas_, rtol=1e-4)
    assert np.allclose(ours.mse_path_, theirs.mse_path_, rtol=0.01)
    assert ours.alpha_ == pytest.approx(theirs.alpha_, rel=1e-4)


def test_tensors_in_tensors_out():
    x, y = torch.from_numpy(X).float(), torch.from_numpy(Y).float()
    fitted = Lasso(0.1).fit(x, y)
    assert isinstance(fitted.coef_, torch.Tensor) and fitted.coef_.dtype == torch.float32
    assert isinstance(fitted.predict(x), torch.Tensor)
    assert np.allclose(fitted.coef_.numpy(), Lasso(0.1).fit(X, Y).coef_, atol=1e-3)
    assert fitted.score(X, Y) > 0.9
    with pytest.raises(ShapeError, match="30"):
        fitted.predict(x[:, :3])
    with pytest.raises(NonFiniteError):
        Lasso().fit(x, y * torch.nan)


def test_tensors_that_cannot_be_used_are_refused():
    with pytest.raises(DtypeError):
        Lasso().fit(torch.ones(4, 2, dtype=torch.long), torch.ones(4))
    with pytest.raises(ShapeError):
        Lasso().fit(torch.ones(4, 2), [1.0, 2.0])


def test_names_of_an_earlier_fit_are_forgotten():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 0.0]})
    model = Lasso(0.1).fit(frame, [1.0, 2.0, 3.0])
    assert list(model.feature_names_in_) == ["a", "b"]
    model.fit(torch.tensor(frame.to_numpy()), [1.0, 2.0, 3.0])
    assert not hasattr(model, "feature_names_in_") and len(model.predict(frame.to_numpy())) == 3


def test_penalties_by_name_and_penalties_that_couple():
    mcp = SparseRegressor({"mcp": {"weight": 0.3, "gamma": 5.0}}).fit(X, Y)
    assert np.flatnonzero(mcp.coef_).tolist() == [0, 1, 2, 3]
    assert np.allclose(mcp.coef_[:4], [3, -2, 1, 4], atol=0.25)
    assert SparseRegressor(MCP(0.3, 5.0)).fit(X, Y).coef_ == pytest.approx(mcp.coef_)
    group = SparseRegressor(Group(2, 0.3)).fit(X, Y)
    assert bool(((group.coef_.reshape(-1, 2) != 0).sum(1) != 1).all())
    assert clone(group).penalty == Group(2, 0.3)


def test_other_datafits_take_no_intercept():
    labels = np.sign(Y - 5)
    fitted = SparseRegressor(L1(0.05), "logistic", fit_intercept=False).fit(X, labels)
    assert (np.sign(fitted.predict(X)) == labels).mean() > 0.9
    theirs = linear_model.LogisticRegression(
        l1_ratio=1, C=1 / (0.05 * 60), fit_intercept=False, solver="liblinear", tol=1e-8
    )
    assert np.allclose(fitted.coef_, theirs.fit(X, labels).coef_[0], atol=1e-2)
    with pytest.raises(RecipeError, match="fit_intercept=False"):
        SparseRegressor(datafit="huber").fit(X, Y)
    with pytest.raises(RecipeError, match="not convex"):
        SparseRegressor("mcp", "logistic", fit_intercept=False).fit(X, labels)


def test_stopping_short_is_said():
    with pytest.warns(ConvergenceWarning, match="duality gap"):
        Lasso(0.001, max_iter=1, tol=1e-12).fit(X, Y)
