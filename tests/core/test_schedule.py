"""When the support changes: values at the ends, in between, and outside."""

from __future__ import annotations

import pytest

from sparseworks.core.errors import BudgetError
from sparseworks.core.schedule import SCHEDULES, Cadence, Cosine, Cubic, Linear, Once, Rounds


def test_formulas():
    assert [Once()(t) for t in (0, 0.5, 1)] == [1, 1, 1]
    assert [Linear(0.2, 0.8)(t) for t in (0, 0.5, 1)] == pytest.approx([0.2, 0.5, 0.8])
    assert [Cubic(0, 0.8)(t) for t in (0, 0.5, 1)] == pytest.approx([0, 0.8 * (1 - 0.125), 0.8])
    assert [Cosine(0.3)(t) for t in (0, 0.5, 1)] == pytest.approx([0.3, 0.15, 0])


def test_rounds_are_equal_steps_of_the_logarithm():
    shares = Rounds(4).shares(0.0625)
    assert shares == pytest.approx([0.5, 0.25, 0.125, 0.0625])
    with pytest.raises(BudgetError, match="at least one round"):
        Rounds(0)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_progress_is_clamped_and_the_way_is_monotone(name):
    schedule = SCHEDULES.get(name)()
    assert schedule(-1) == schedule(0) and schedule(2) == schedule(1)
    values = [schedule(t / 20) for t in range(21)]
    assert (values in (sorted(values), sorted(values, reverse=True))) == schedule.monotone


def test_cadence():
    due = Cadence(every=10, start=5, stop=30)
    assert [s for s in range(40) if due(s)] == [5, 15, 25]
    assert Cadence(every=1)(0)
    for bad in ({"every": 0}, {"start": -1}, {"start": 5, "stop": 4}):
        with pytest.raises(BudgetError, match="cadence"):
            Cadence(**bad)
