"""The Reber grammar."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from sparseworks.core.errors import BudgetError
from sparseworks.evaluate.reber import NEXT, SYMBOLS, Reber, accepts, told


@pytest.mark.parametrize("string", ["BTXSE", "BPVVE", "BTSSSXSE", "BTXXVVE", "BPTTVPSE", "BPTVPXTVPXVPSE", "BTXXTTVVE"])
def test_accepts_paths_of_the_automaton(string):
    assert accepts(string)


@pytest.mark.parametrize(
    "string", ["", "B", "BE", "BTXS", "BTXSEE", "TXSE", "BTSSE", "BPVSE", "BTXVVE", "BPTTXSE", "btxse"]
)
def test_refuses_all_else(string):
    assert not accepts(string)


def test_only_two_strings_of_five_symbols_and_the_count_bounds_what_is_drawn():
    assert {s for s in map("".join, product(SYMBOLS, repeat=5)) if accepts(s)} == {"BTXSE", "BPVVE"}
    by_hand = sum(accepts("B" + "".join(s) + "E") for n in range(3, 6) for s in product("TSXPV", repeat=n))
    Reber.draw(by_hand, longest=7)
    with pytest.raises(BudgetError):
        Reber.draw(by_hand + 1, longest=7)


def test_draws_are_distinct_balanced_repeatable_and_labelled_rightly():
    data = Reber.draw(200, longest=14, seed=3)
    strings = data.strings()
    assert len(set(strings)) == 200 and int(data.valid.sum()) == 100
    assert [accepts(s) for s in strings] == data.valid.bool().tolist()
    assert data.lengths.tolist() == [len(s) for s in strings] and max(data.lengths) <= 14
    assert strings == Reber.draw(200, longest=14, seed=3).strings() != Reber.draw(200, longest=14, seed=4).strings()
    part = data[data.valid == 1]
    assert len(part) == 100 and all(map(accepts, part.strings()))
    assert all(s[0] == "B" and s[-1] == "E" for s in strings), "near misses differ inside"


def test_next_symbols_by_hand():
    data = Reber.of(["BTXSE", "BPX"], 6)
    assert data.following()[0].tolist() == [SYMBOLS.index(c) for c in "TXSE"] + [-1, -1]
    allowed = [{SYMBOLS[i] for i in row.nonzero().flatten().tolist()} for row in data.allowed().flatten(0, 1)]
    assert allowed == [
        set("TP"),
        set("SX"),
        set("XS"),
        set("E"),
        set(),
        set(),
        set("TP"),
        set("TV"),
        set(),
        set(),
        set(),
        set(),
    ]
    assert data.one_hot().sum(-1).tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]
    scores = data.allowed().float()
    assert told(scores, data.allowed()) == 1
    scores[0, 1, SYMBOLS.index("V")] = 1  # as high as what may follow: not told
    assert told(torch.stack([scores, -scores]), data.allowed()).tolist() == pytest.approx([5 / 6, 0])


def test_states_have_two_ways_out_but_the_first_and_the_last_two():
    assert [len(ways) for ways in NEXT] == [1, 2, 2, 2, 2, 2, 1, 0]


@pytest.mark.parametrize("strings", [["BTXSE", ""], ["BTXSQ"], ["BTXSEBTXSE"]])
def test_refuses_what_is_no_string(strings):
    with pytest.raises(BudgetError):
        Reber.of(strings, 8)
