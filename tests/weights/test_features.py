"""QuickSelection: does the strength of links find the features that carry something?"""

from __future__ import annotations

import warnings

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

from sklearn.exceptions import SkipTestWarning  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from sparseworks.weights.features import QuickSelection  # noqa: E402

TRUE, ALL = 20, 300


def correlated(seed):
    """Like Madelon: 20 features on five factors among noise."""
    r = np.random.default_rng(seed)
    x, at = r.normal(size=(1000, ALL)), r.permutation(ALL)[:TRUE]
    x[:, at] = r.normal(size=(1000, 5)) @ r.normal(size=(5, TRUE)) + 0.1 * r.normal(size=(1000, TRUE))
    return x, set(at)


def test_more_than_half_of_the_true_features_are_found():
    x, true = correlated(0)
    selector = QuickSelection(TRUE, epochs=20, random_state=0).fit(x)
    found = len(true & set(np.flatnonzero(selector.get_support())))
    untrained = QuickSelection(TRUE, epochs=20, learning_rate=1e-9, random_state=0).fit(x)
    chance = len(true & set(np.flatnonzero(untrained.get_support())))
    assert found > TRUE / 2 > chance + 4, (found, chance)
    assert selector.kept_ == 2 * 13 * (ALL + 1000)
    assert selector.transform(x).shape == (1000, TRUE)


def test_it_is_a_scikit_learn_selector():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        check_estimator(QuickSelection(hidden=20, epochs=1))


@pytest.mark.parametrize("bad", [{"n_features": 0}, {"zeta": 1.0}, {"epsilon": 0}, {"noise": -1.0}, {"epochs": 0}])
def test_parameters_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="QuickSelection needs"):
        QuickSelection(**bad).fit(np.random.default_rng(0).normal(size=(8, 4)))
