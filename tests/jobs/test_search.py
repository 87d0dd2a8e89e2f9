from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparseworks as sw
from sparseworks.core.errors import BudgetError, CheckpointError, ModelError
from sparseworks.core.recipe import Recipe
from sparseworks.evaluate import OutputSimilarity
from sparseworks.jobs.goal import Goal, UnreachableError
from sparseworks.jobs.search import Trial, _best, _walk, knapsack, search


def brute(costs, losses, budget):
    fits = [
        p
        for p in product(*(range(len(c)) for c in costs))
        if sum(c[i] for c, i in zip(costs, p, strict=True)) <= budget
    ]
    return min(sum(v[i] for v, i in zip(losses, p, strict=True)) for p in fits)


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_knapsack_is_optimal(data):
    items = data.draw(st.integers(1, 4))
    options = data.draw(st.integers(1, 4))
    number = st.integers(1, 50)
    costs = [[data.draw(number) for _ in range(options)] for _ in range(items)]
    losses = [[data.draw(number) for _ in range(options)] for _ in range(items)]
    cheapest = sum(map(min, costs))
    budget = data.draw(st.integers(cheapest, cheapest + 60)) * 1.0
    picks = knapsack(costs, losses, budget)
    assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= budget * (1 + items / 100_000)
    # Costs are rounded to 1/100,000 of the budget, so the optimum of a budget smaller by that much is reached.
    tight = budget * (1 - items / 100_000)
    if cheapest <= tight:
        assert sum(v[i] for v, i in zip(losses, picks, strict=True)) <= brute(costs, losses, tight)


def test_knapsack_takes_everything_dense_when_there_is_room():
    assert knapsack([[5.0, 1.0], [5.0, 1.0]], [[0.0, 0.3], [0.0, 0.1]], 100.0) == [0, 0]


def test_knapsack_thins_the_site_that_loses_least():
    assert knapsack([[5.0, 1.0], [5.0, 1.0]], [[0.0, 0.3], [0.0, 0.1]], 6.01) == [0, 1]


def test_a_budget_below_the_cheapest_choice_is_refused():
    with pytest.raises(BudgetError, match="above the budget"):
        knapsack([[5.0, 2.0]], [[0.0, 1.0]], 1.0)


@pytest.mark.parametrize("wrong", [{}, {"speedup": 0.5}, {"max_drop": 1.5}, {"max_drop": -0.1}])
def test_goals_are_checked(wrong):
    with pytest.raises(BudgetError):
        Goal(**wrong)


@dataclass
class Machine:
    """Real speed is a fixed share of what was aimed at; quality falls linearly with speed."""

    fastest: float = 5.0
    honest: float = 0.9
    built: list[float] = field(default_factory=list)

    def build(self, aim: float) -> Trial:
        self.built.append(aim)
        ratio = aim * self.honest
        return Trial(aim, ratio, 1 - 0.02 * ratio, 0.02 * ratio, Recipe(()), {})


def test_the_aim_is_corrected_until_the_measured_speed_holds():
    machine = Machine()
    done = _walk(machine, Goal(speedup=2.0), 6)  # type: ignore[arg-type]
    assert machine.built[0] == 2.0
    assert done[-1].ratio >= 2.0
    assert len(done) == 2


def test_without_a_speed_the_fastest_variant_within_the_drop_is_found():
    goal = Goal(max_drop=0.05)
    done = _walk(Machine(), goal, 8)  # type: ignore[arg-type]
    best = _best(done, goal)
    assert best.drop <= 0.05
    assert best.ratio > 2.2  # 0.05 / 0.02 = 2.5 is the limit


def test_an_unreachable_speed_gives_the_fastest_there_is():
    done = _walk(Machine(fastest=1.5), Goal(speedup=3.0), 6)  # type: ignore[arg-type]
    assert len(done) == 1
    assert done[0].target == 1.5


def look(net, batches, goal=Goal(speedup=1.6), **options):  # noqa: B008 - frozen
    task = OutputSimilarity(batches, net)
    return search(net, sw.method("wanda"), goal, data=batches, evaluate=task, examples={"x": batches[0]}, **options)


def test_a_search_meets_its_goal_and_shows_more_and_less_speed(net, batches, paced):
    found = look(net, batches)
    assert found.met
    assert found.best.ratio >= 1.6
    speeds = [p["speed"] for p in found.frontier]
    assert speeds == sorted(speeds)
    assert speeds[0] < found.best.ratio < speeds[-1]


def test_an_interrupted_search_measures_nothing_twice_and_chooses_the_same(net, batches, paced, tmp_path):
    class StopError(Exception):
        pass

    def stop(line: str):
        if "measured" in line:
            raise StopError

    with pytest.raises(StopError):
        look(net, batches, workdir=tmp_path, say=stop)
    before = len(paced)
    again = look(net, batches, workdir=tmp_path)
    assert len(paced) == before
    assert again.best.recipe == look(net, batches).best.recipe


def test_a_journal_of_other_settings_is_refused(net, batches, paced, tmp_path):
    look(net, batches, workdir=tmp_path)
    with pytest.raises(CheckpointError, match="other settings"):
        look(net, batches, goal=Goal(speedup=1.5), workdir=tmp_path)


def test_where_nothing_runs_faster_the_search_says_so(net, batches, paced, monkeypatch):
    import importlib
    from types import SimpleNamespace

    slow = SimpleNamespace(us=100.0, dense_us=100.0, kernel="made-up", alternatives=())
    levels = importlib.import_module("sparseworks.jobs.levels")
    monkeypatch.setattr(levels, "plan", lambda m, supports, **o: SimpleNamespace(rows=[slow] * len(supports)))
    with pytest.raises(UnreachableError, match="No site runs faster"):
        look(net, batches)


def test_a_search_over_nothing_is_refused(net, batches):
    with pytest.raises(ModelError, match="Nothing to search over"):
        look(net, batches, skip=("*",))
