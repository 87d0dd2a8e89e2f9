"""The search: exact budget, fitness that never rises on fixed tokens, and better than where it started."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.allocate import EvoPress, evolve
from sparseworks.allocate.evolve import shift
from sparseworks.core.budget import Density
from sparseworks.core.errors import BudgetError, MissingStatError
from sparseworks.testing.allocator import toy_evidence, toy_sites

STAGES = ((4, 10), (2, 20), (1, 40))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6), st.integers(0, 99))
def test_a_shift_keeps_the_sum_and_the_bounds(bounds, seed):
    lows, highs = [-a for a, _ in bounds], [b for _, b in bounds]
    draw, choice = random.Random(seed), (0,) * len(bounds)
    for _ in range(10):
        choice = shift(lows, highs)(choice, draw)
        assert sum(choice) == 0 and all(a <= v <= b for a, v, b in zip(lows, choice, highs, strict=True))


def test_selection_in_stages_finds_the_optimum_and_never_rises():
    wanted, seen = (3, -2, -1, 0, 2, -2), []

    def fitness(choice, tokens, draw):
        seen.append(tokens)
        return sum((a - b) ** 2 for a, b in zip(choice, wanted, strict=True)) + random.Random(draw).random() / tokens

    found = evolve((0,) * 6, shift([-8] * 6, [8] * 6), fitness, generations=30, offspring=16, stages=STAGES)
    assert found.best == wanted
    assert all(after <= before for before, after in found.history)
    assert set(seen) == {10, 20, 40} and seen.count(10) > seen.count(20) > seen.count(40)
    again = evolve((0,) * 6, shift([-8] * 6, [8] * 6), fitness, generations=30, offspring=16, stages=STAGES)
    assert again == found


def test_counts_are_exact_and_better_than_uniform():
    sites = toy_sites()
    allocate = EvoPress(generations=20, offspring=8, stages=STAGES, step=7)
    evidence = toy_evidence(allocate, sites)
    assert evidence.trial is not None
    counts = allocate(sites, Density(0.5), evidence=evidence)
    uniform = {s.name: s.size // 2 for s in sites}
    assert sum(counts.values()) == sum(uniform.values()) and all((counts[n] - uniform[n]) % 7 == 0 for n in counts)
    assert evidence.trial(counts, 1, 0) < evidence.trial(uniform, 1, 0)


def test_refuses_a_search_without_end_or_evidence():
    with pytest.raises(BudgetError, match="one survivor"):
        evolve((0, 0), shift([-1] * 2, [1] * 2), lambda *_: 0.0, generations=1, offspring=4, stages=((2, 1),))
    sites = toy_sites()
    bare = toy_evidence(EvoPress(), sites)
    with pytest.raises(MissingStatError, match="calibration data"):
        EvoPress()(sites, Density(0.5), evidence=type(bare)(weight=bare.weight))
