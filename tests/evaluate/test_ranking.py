from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from sparseworks.core.errors import NonFiniteError
from sparseworks.evaluate.ranking import average_precision, ndcg, recall, top


def test_ndcg_by_hand_with_linear_gain():
    judged = {"a": 3, "b": 1, "c": 2, "far": 1}
    ranked = ["b", "x", "a"]
    dcg = 1 / math.log2(2) + 3 / math.log2(4)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert ndcg(ranked, judged, k=3) == pytest.approx(dcg / ideal)
    exponential = (1 + 7 / 2) / (7 + 3 / math.log2(3) + 1 / 2)
    assert ndcg(ranked, judged, k=3) != pytest.approx(exponential)


def test_ndcg_counts_relevant_documents_that_are_not_in_the_collection():
    assert ndcg(["a"], {"a": 1, "absent": 1}) == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_recall_and_average_precision_by_hand():
    judged = {"a": 1, "b": 2, "c": 1, "no": 0}
    ranked = ["a", "no", "b", "x", "c"]
    assert recall(ranked, judged, k=3) == pytest.approx(2 / 3)
    assert recall(ranked, judged, k=5) == 1.0
    assert average_precision(ranked, judged) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert average_precision(ranked, judged, k=3) == pytest.approx((1 + 2 / 3) / 3)


def test_without_relevant_documents_all_are_zero():
    for metric in (ndcg, recall, average_precision):
        assert metric(["a"], {"a": 0, "b": -1}) == 0.0


grades = st.lists(st.integers(0, 3), min_size=2, max_size=30).filter(any)


@settings(deadline=None, max_examples=50)
@given(grades, st.integers(1, 12), st.integers(0, 2**16))
def test_agrees_with_scikit_learn(grade: list[int], k: int, seed: int):
    scores = np.random.default_rng(seed).permutation(len(grade)).astype(float)
    ids = [str(i) for i in range(len(grade))]
    ranked = top(torch.tensor(scores)[None], ids)[0]
    judged = dict(zip(ids, grade, strict=True))
    assert ndcg(ranked, judged, k) == pytest.approx(ndcg_score([grade], [scores], k=k))
    assert average_precision(ranked, judged) == pytest.approx(average_precision_score([g > 0 for g in grade], scores))


@settings(deadline=None, max_examples=50)
@given(grades)
def test_best_order_is_one_and_nothing_is_above(grade: list[int]):
    ids = [str(i) for i in range(len(grade))]
    judged = dict(zip(ids, grade, strict=True))
    assert ndcg(sorted(ids, key=lambda d: -judged[d]), judged) == pytest.approx(1.0)
    assert 0.0 <= ndcg(ids, judged) <= 1.0 + 1e-12


def test_top_keeps_the_order_of_equal_scores():
    scores = torch.zeros(1, 50)
    scores[0, 40] = 1.0
    ids = [str(i) for i in range(50)]
    assert top(scores, ids, k=4) == [["40", "0", "1", "2"]]


def test_top_refuses_nan():
    with pytest.raises(NonFiniteError, match="NaN"):
        top(torch.tensor([[0.0, float("nan")]]), ["a", "b"])
