"""Budgets resolve to integers once, and say why when they cannot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.budget import (
    BUDGETS,
    Budget,
    Bytes,
    Count,
    Density,
    Elbow,
    Flops,
    Latency,
    Mass,
    Peak,
    Recall,
    Residual,
    Threshold,
    even_split,
)
from sparseworks.core.errors import BudgetError, NonFiniteError

quick = settings(deadline=None, max_examples=50)
SIZES = {"a": 100, "b": 300}


def test_density_and_count():
    assert Density(0.25).total(SIZES) == 100
    assert Density(0.0).total(SIZES) == 0 and Density(1.0).total(SIZES) == 400
    assert Count(37).total(SIZES) == 37
    with pytest.raises(BudgetError, match="Cannot keep 401 of 400"):
        Count(401).total(SIZES)


@pytest.mark.parametrize("kind", [Bytes, Flops, Latency])
def test_priced_budgets_spend_as_much_as_fits(kind):
    cost = lambda name, kept: 10 + kept * (4 if name == "a" else 2)  # noqa: E731
    total = kind(500).total(SIZES, cost)
    spend = lambda t: sum(cost(n, round(t * s / 400)) for n, s in SIZES.items())  # noqa: E731
    assert spend(total) <= 500 < spend(total + 2)
    assert kind(1e9).total(SIZES, cost) == 400
    with pytest.raises(BudgetError, match="Even an empty support costs 20"):
        kind(19).total(SIZES, cost)
    with pytest.raises(BudgetError, match="give `cost=`"):
        kind(500).total(SIZES)


@quick
@given(values=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=12), p=st.floats(0, 1))
def test_mass_is_the_smallest_prefix_that_reaches_the_share(values, p):
    k = int(Mass(p).counts(torch.tensor([values], dtype=torch.float64)))
    best, whole = sorted(values, reverse=True), sum(values)
    assert sum(best[:k]) >= p * whole * (1 - 1e-9)
    assert k == 0 or sum(best[: k - 1]) < p * whole or p * whole == 0


@quick
@given(values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12), share=st.floats(0, 1))
def test_residual_leaves_out_at_most_the_share(values, share):
    k = int(Residual(share).counts(torch.tensor([values], dtype=torch.float64)))
    squares = sorted((v * v for v in values), reverse=True)
    assert sum(squares[k:]) <= share * sum(squares) * (1 + 1e-9)
    assert k == 0 or sum(squares[k - 1 :]) > share * sum(squares) * (1 - 1e-9)


def test_threshold_and_recall_count_entries():
    grouped = torch.tensor([[1.0, 2.0, 3.0], [3.0, 3.0, 0.0]])
    assert Threshold(2.0).counts(grouped).tolist() == [2, 2]
    assert Recall(0.5, of=3).counts(grouped).tolist() == [2, 2]
    assert Recall(0.1, of=30).counts(grouped).tolist() == [1, 1]
    assert Recall(0.3, of=10).counts(torch.zeros(1, 50)).tolist() == [3]  # 0.3 * 10 is not 3 in floating point


def test_elbow_keeps_the_plateau_and_looks_at_shape_only():
    grouped = torch.tensor([[0.0, 9.0, 10.0, 0.1, 0.0, 9.5, 0.0], [5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert Elbow().counts(grouped).tolist() == [3, 1]
    assert Elbow().counts(grouped * 1e-6 - 40.0).tolist() == [3, 1]
    assert Elbow().counts(torch.tensor([[4.0] * 6 + [1.0, 0.9]])).tolist() == [
        6
    ]  # the edge of a plateau lies above the chord
    assert Elbow().counts(torch.ones(2, 5)).tolist() == [5, 5]
    assert Elbow().counts(torch.arange(6.0)[None]).tolist() == [6]
    assert Elbow().counts(torch.tensor([[2.0, 1.0], [1.0, 1.0]])).tolist() == [2, 2]


def test_elbow_finds_how_many_were_planted_where_a_fixed_share_cannot():
    g = torch.Generator().manual_seed(0)
    planted = [20, 45, 90, 150]
    errors = []
    for k in planted * 5:
        tail = 1 + torch.rand(k, generator=g).reciprocal().clamp(max=4)  # Pareto: heavy tail above the noise
        scores = torch.cat([tail, 0.3 * torch.rand(400 - k, generator=g)])[torch.randperm(400, generator=g)]
        errors.append(abs(int(Elbow().counts(scores[None])) - k) / k)
    assert max(errors) <= 0.1
    share = sum(planted) / len(planted)
    assert sum(abs(share - k) / k for k in planted) / len(planted) > 0.5


@quick
@given(values=st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=12))
def test_elbow_is_the_point_farthest_from_the_chord(values):
    best = sorted(values, reverse=True)
    gaps = [v - best[0] - (best[-1] - best[0]) * i / (len(best) - 1) for i, v in enumerate(best)]
    k, most = int(Elbow().counts(torch.tensor([values]))), max(map(abs, gaps))
    assert 1 <= k <= len(values)
    if k == len(values):
        assert most <= 1e-6 * (best[0] - best[-1])
    else:
        assert -gaps[k] >= most - 1e-9 or gaps[k - 1] >= most - 1e-9


def test_scored_budgets_on_empty_groups_and_bad_scores():
    for budget in (Mass(0.5), Residual(0.5), Threshold(0.0), Elbow()):
        assert budget.needs_scores
        assert budget.counts(torch.zeros(2, 0)).tolist() == [0, 0]
        with pytest.raises(NonFiniteError, match="NaN"):
            budget.counts(torch.tensor([[float("nan"), 1.0]]))
        with pytest.raises(BudgetError, match="needs scores"):
            budget.total(SIZES)
    with pytest.raises(BudgetError, match="not negative"):
        Mass(0.5).counts(torch.tensor([[-1.0, 1.0]]))
    with pytest.raises(BudgetError, match="without scores"):
        Density(0.5).counts(torch.zeros(1, 1))
    assert Mass(0.5).counts(torch.zeros(1, 4)).tolist() == [0]


@pytest.mark.parametrize(
    "build",
    [
        lambda: Density(-0.1), lambda: Density(1.1), lambda: Density(float("nan")), lambda: Mass(2.0), lambda: Residual(-1.0),
        lambda: Recall(1.5, of=3), lambda: Recall(0.5, of=-1), lambda: Count(-1), lambda: Count(0.5), lambda: Bytes(-1.0),
        lambda: Latency(float("nan")),
    ],
)  # fmt: skip
def test_values_out_of_range(build):
    with pytest.raises(BudgetError):
        build()


def test_a_peak_keeps_what_is_near_the_largest_of_its_group():
    scores = torch.tensor([[4.0, 2.0, 1.9, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert Peak(0.5).counts(scores).tolist() == [2, 4, 4]
    assert Peak(1.0).counts(scores).tolist() == [1, 4, 4] and Peak(0.0).counts(scores).tolist() == [4, 4, 4]
    assert Peak(0.5).counts(torch.zeros(2, 0)).tolist() == [0, 0]
    with pytest.raises(BudgetError, match="not negative"):
        Peak(0.5).counts(-scores)
    with pytest.raises(BudgetError, match="peak"):
        Peak(1.5)


def test_budgets_are_never_one_float_with_several_meanings():
    values = dict(BUDGETS.items())
    assert set(values) >= {
        "density",
        "count",
        "bytes",
        "flops",
        "latency",
        "mass",
        "threshold",
        "residual",
        "recall",
        "elbow",
    }
    assert all(issubclass(kind, Budget) for kind in values.values())
    assert Density(0.5) != Mass(0.5)


@quick
@given(sizes=st.lists(st.integers(0, 10**12), min_size=1, max_size=8), share=st.floats(0, 1))
def test_even_split_is_exact_at_any_size(sizes, share):
    total = int(share * sum(sizes))
    counts = even_split(total, sizes)
    assert sum(counts) == total and all(0 <= c <= s for c, s in zip(counts, sizes, strict=True))
    whole = max(sum(sizes), 1)
    assert all(abs(c * whole - total * s) < whole for c, s in zip(counts, sizes, strict=True))


def test_even_split_gives_ties_to_the_earlier():
    assert even_split(2, [1, 1, 1]) == [1, 1, 0]
    with pytest.raises(BudgetError, match="Cannot keep 4 of 3"):
        even_split(4, [1, 2])
