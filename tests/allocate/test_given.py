"""Shares given by the caller: exact where they add up, scaled and cut where they do not."""

from __future__ import annotations

import pytest

from sparseworks.allocate import Proportional
from sparseworks.core.budget import Count, Density
from sparseworks.core.config import from_config, to_config
from sparseworks.core.errors import BudgetError
from sparseworks.testing.allocator import toy_evidence, toy_sites


def counts(allocator: Proportional, budget) -> dict[str, int]:
    sites = toy_sites(((16, 8), (8, 16), (32, 8)))
    return allocator(sites, budget, evidence=toy_evidence(allocator, sites))


def test_a_total_equal_to_the_shares_gives_them():
    given = {"0": 7, "1": 100, "2": 1}
    assert counts(Proportional(tuple(given.items())), Count(108)) == given


def test_other_totals_are_shared_out_and_cut_at_the_size():
    shares = Proportional((("0", 10), ("1", 30), ("2", 10)))
    assert counts(shares, Count(100)) == {"0": 20, "1": 60, "2": 20}
    assert counts(shares, Count(300)) == {"0": 86, "1": 128, "2": 86}
    assert counts(Proportional(), Density(0.25)) == {"0": 32, "1": 32, "2": 64}  # by size


def test_it_is_plain_data_and_refuses_negative_shares():
    shares = Proportional((("a.b", 10), ("c", 2.5)))
    assert from_config("allocate", to_config(shares)) == shares
    with pytest.raises(BudgetError, match="site 'c'"):
        Proportional((("c", -1),))
