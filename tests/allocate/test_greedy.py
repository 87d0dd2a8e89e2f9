"""Greedy shares: entries leave the site that can spare them, steps pass every budget, and equal shares are never worse."""

from __future__ import annotations

import pytest

from sparseworks.allocate import BlockGreedy
from sparseworks.core.allocator import Evidence
from sparseworks.core.budget import Count, Density
from sparseworks.core.errors import MissingStatError
from sparseworks.core.site import Site
from sparseworks.testing import check_allocator

SITES = [Site(str(i), "linear", f"{i}.weight", (10, 10)) for i in range(4)]


def evidence(error, block=(0, 0, 0, 0)):
    return Evidence(weight=lambda _: None, block=dict(zip("0123", block, strict=True)), block_error=error)


def test_conformance():
    check_allocator(BlockGreedy)


def test_the_site_that_can_spare_goes_first():
    weights = {"0": 100.0, "1": 1.0, "2": 10.0, "3": 1000.0}
    counts = BlockGreedy(step=0.1)(
        SITES, Density(0.5), evidence=evidence(lambda c, _: sum(weights[n] * (1 - c[n] / 100) for n in c))
    )
    assert counts == {"0": 100, "1": 0, "2": 0, "3": 100}


def test_never_worse_than_equal_shares():
    # Losing anything of one site alone is free, but it ends in a trap that equal shares do not meet.
    def trap(counts, _):
        least = min(counts.values())
        return (
            1000.0 if least == 0 else sum(1 - c / 100 for c in counts.values()) + 0.1 * (max(counts.values()) != least)
        )

    counts = BlockGreedy(step=1.0)(SITES, Count(200), evidence=evidence(trap))
    assert set(counts.values()) == {50}


def test_blocks_keep_the_same_share_and_sites_outside_theirs():
    counts = BlockGreedy()(SITES, Density(0.5), evidence=evidence(lambda c, _: 1 - c.get("0", 0), (0, 0, 1, -1)))
    assert counts["0"] + counts["1"] == 100 and counts["2"] == counts["3"] == 50


def test_says_what_it_needs():
    with pytest.raises(MissingStatError, match="sparse activations"):
        BlockGreedy()(SITES, Density(0.5), evidence=evidence(None))
