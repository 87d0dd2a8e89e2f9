"""Allocation: integers that sum to the budget exactly, or one clear sentence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.allocator import Allocator, Evidence, Uniform
from sparseworks.core.budget import Bytes, Count, Density
from sparseworks.core.errors import BudgetError, MissingStatError
from sparseworks.core.site import Site

quick = settings(deadline=None, max_examples=50)
NO_EVIDENCE = Evidence(weight=lambda name: torch.zeros(1, 1))


def sites(*shapes: tuple[int, int]) -> list[Site]:
    return [Site(f"s{i}", "linear", f"s{i}.weight", shape) for i, shape in enumerate(shapes)]


@quick
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6), density=st.floats(0, 1)
)
def test_uniform_gives_every_site_the_same_density(shapes, density):
    made = sites(*shapes)
    counts = Uniform()(made, Density(density), evidence=NO_EVIDENCE)
    assert sum(counts.values()) == round(density * sum(s.size for s in made))
    assert all(abs(counts[s.name] - density * s.size) <= 1.5 for s in made)


def test_budgets_of_every_type():
    made = sites((2, 4), (4, 4))
    assert Uniform()(made, Count(12), evidence=NO_EVIDENCE) == {"s0": 4, "s1": 8}
    assert Uniform()(made, Bytes(48.0), cost=lambda _, kept: 4.0 * kept, evidence=NO_EVIDENCE) == {"s0": 4, "s1": 8}


class Wrong(Allocator):
    def __init__(self, counts):
        self.counts = counts

    def shares(self, sites, total, evidence):
        return self.counts


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"s0": 1, "s1": 1}, "Wrong gave 2 entries for a budget of 12"),
        ({"s0": 9, "s1": 3}, "Wrong gave site 's0' of 8 entries 9"),
        ({"s0": -1, "s1": 13}, "gave site 's0' of 8 entries -1"),
        ({"s1": 12}, "gave site 's0' of 8 entries nothing"),
    ],
)
def test_an_allocator_that_miscounts_is_caught(counts, text):
    with pytest.raises(BudgetError, match=text):
        Wrong(counts)(sites((2, 4), (4, 4)), Density(0.5), evidence=NO_EVIDENCE)


def test_no_sites():
    with pytest.raises(BudgetError, match="no sites"):
        Uniform()([], Density(0.5), evidence=NO_EVIDENCE)


def test_evidence_scores_need_a_score():
    with pytest.raises(MissingStatError, match="'s0' needs a score"):
        NO_EVIDENCE.scores("s0")
