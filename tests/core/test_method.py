"""A method is a frozen bundle: changed by copy, described in one line, refused where its parts cannot hold together."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from sparseworks.core.allocator import Uniform
from sparseworks.core.budget import Count, Density
from sparseworks.core.errors import BudgetError, RecipeError, UnknownNameError
from sparseworks.core.method import METHODS, Method, Source, method
from sparseworks.core.patterns import parse
from sparseworks.core.schedule import Cubic
from sparseworks.core.score import SCORES
from sparseworks.core.solver import Nothing, Select
from sparseworks.core.stats import STATS
from sparseworks.scores import Magnitude

PLAIN = Method("plain", Magnitude(), parse("row"))


def test_defaults_and_one_line():
    assert PLAIN.budget == Density(0.5) and PLAIN.allocate == Uniform() and PLAIN.solve == Select()
    assert PLAIN.composition == (
        "score=magnitude pattern=row budget=density(value=0.5) allocate=uniform solve=select schedule=once"
    )


def test_changed_copies():
    changed = PLAIN.with_(density=0.3, pattern="column", schedule="cubic")
    assert changed.budget == Density(0.3) and changed.pattern == parse("column") and changed.schedule == Cubic()
    assert PLAIN.budget == Density(0.5)
    assert PLAIN.with_(repair="none").solve == Select(Nothing()) == PLAIN.with_(repair=Nothing()).solve
    assert PLAIN.with_(budget={"count": {"value": 7}}).budget == Count(7)
    assert PLAIN.with_(name="other").name == "other"
    with pytest.raises(FrozenInstanceError):
        PLAIN.name = "x"  # type: ignore[misc]


def test_a_pattern_that_fixes_the_density_sets_the_budget():
    assert Method("m", Magnitude(), parse("1:4")).budget == Density(0.25)
    assert PLAIN.with_(pattern="1:4").budget == Density(0.25)
    assert PLAIN.with_(pattern="1:4").with_(pattern="row").budget == Density(0.5)
    assert PLAIN.with_(density=0.3).with_(pattern="column").budget == Density(0.3)
    assert PLAIN.with_(pattern="2:4", density=0.5).budget == Density(0.5)


@pytest.mark.parametrize("density", [0.5, 0.3])
def test_a_density_that_the_pattern_cannot_hold_is_refused(density):
    with pytest.raises(BudgetError, match=r"1:4 fixes the density at 0\.25"):
        PLAIN.with_(pattern="1:4", density=density)
    with pytest.raises(BudgetError, match="cannot hold"):
        PLAIN.with_(pattern="1:4").with_(density=density)
    with pytest.raises(BudgetError, match="cannot hold"):
        Method("m", Magnitude(), parse("2:4"), Density(0.3))


def test_unknown_options_and_names():
    with pytest.raises(RecipeError, match=r"'plain' has no option 'sparsity'; it takes density, repair, name"):
        PLAIN.with_(sparsity=0.3)
    with pytest.raises(UnknownNameError, match=r"Unknown allocator 'unifrm'\. Did you mean 'uniform'"):
        PLAIN.with_(allocate="unifrm")
    with pytest.raises(UnknownNameError, match="Unknown method"):
        method("no such method")


def test_needs_are_joined():
    sparse = PLAIN.with_(score="obs") if "obs" in SCORES else PLAIN
    assert sparse.needs == sparse.score.needs | sparse.solve.needs
    assert PLAIN.needs == frozenset() == PLAIN.evidence_needs
    assert all(kind in list(STATS) for kind in sparse.needs)


SOURCE = Source("Someone", 2024, "2401.00001", "A title")
NAMED = Method("mine", Magnitude(), parse("2:4"), source=SOURCE, claims="c", catalog=(3, 4), status="experimental")


def test_plain_data_round_trip_with_provenance():
    assert Method.from_config(NAMED.to_config()) == NAMED
    assert Method.from_config(PLAIN.to_config()) == PLAIN
    assert str(SOURCE) == "Someone (2024), arXiv 2401.00001" and str(Source("A", 1999)) == "A (1999)"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (["a"], "a name or a mapping"),
        ({"score": "magnitude"}, "no name"),
        ({"name": "x", "scoer": "magnitude"}, "'scoer'"),
        ({"name": "x", "score": "magnitude", "pattern": "row", "source": "me"}, "authors, year"),
    ],
)
def test_data_that_describes_no_method(data, text):
    with pytest.raises(RecipeError, match=text):
        Method.from_config(data)


def test_a_registered_method_keeps_only_what_was_changed():
    import sparseworks.weights  # noqa: F401

    for name, registered in METHODS.items():
        assert registered.to_config() == {"name": name}
        assert type(registered).from_config(name) is registered
