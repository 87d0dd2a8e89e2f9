"""Whole layers as items: the knapsack no longer leaves one of six matrices dense and loses the one call."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import sparseworks as sw
from sparseworks.exec.fusion import KERNEL as WHOLE
from sparseworks.jobs.items import SAVED, items
from sparseworks.jobs.levels import Level, _useful, runs_whole
from sparseworks.jobs.search import knapsack

SIX = [f"layer.{name}" for name in ("q", "k", "v", "o", "up", "down")]
HALF = sw.method("wanda", density=0.5)
THIN = sw.method("wanda", density=0.25)


def table(last_error: float = 0.5):
    """Every matrix takes 100 us dense and 50 in pairs; one of them loses much by it."""
    errors = [0.1] * 5 + [last_error]
    rows = {s: [Level(None, 100.0, 0.0), Level(HALF, 50.0, e, True)] for s, e in zip(SIX, errors, strict=True)}
    return rows | {"head": [Level(None, 100.0, 0.0), Level(THIN, 40.0, 0.9)]}


def picked(found, budget):
    picks = knapsack([[o.us for o in i.options] for i in found], [[o.error for o in i.options] for i in found], budget)
    return {
        site: level
        for item, p in zip(found, picks, strict=True)
        for site, level in zip(item.sites, item.options[p].levels, strict=True)
    }


def test_the_layer_is_kept_whole_where_single_sites_would_thin_more():
    """Aiming at 350 us: six in pairs cost 300 one by one, so the head must be thinned at a great loss; in one call it need not."""
    together = picked(items(table(), {"layer": SIX}, 0.0), 350.0)
    assert together == dict.fromkeys(SIX, 1) | {"head": 0}
    assert picked(items(table(), {}, 0.0), 350.0) == dict.fromkeys(SIX, 1) | {"head": 1}


def test_no_matrix_is_left_dense_where_that_would_lose_the_one_call():
    """A third level is fast alone, but not in pairs: apart, it pays for one dense matrix; whole, all six are in pairs."""
    levels = {s: [*rows, Level(THIN, 25.0, 0.2)] for s, rows in table(0.45).items() if s != "head"}
    levels[SIX[-1]] = levels[SIX[-1]][:2]
    assert picked(items(levels, {}, 0.0), 230.0)[SIX[-1]] == 0
    assert picked(items(levels, {"layer": SIX}, 100.0), 230.0) == dict.fromkeys(SIX, 1)


def test_one_call_saves_of_the_matrices_and_of_what_is_around():
    layer = items(table(), {"layer": SIX}, 200.0)[0]
    assert layer.sites == tuple(SIX)
    assert layer.options[-1].us == pytest.approx(300 - SAVED * 500)
    assert layer.options[0].us == 600.0
    assert layer.options[0].error == 0.0


def test_a_layer_with_a_matrix_that_cannot_is_a_row_of_sites():
    levels = table()
    levels[SIX[2]] = levels[SIX[2]][:1]
    assert all(len(item.sites) == 1 for item in items(levels, {"layer": SIX}, 0.0))
    assert all(len(item.sites) == 1 for item in items({s: levels[s] for s in SIX[:5]}, {"layer": SIX}, 0.0))


def test_mixtures_stay_few():
    levels = [Level(None, 100.0, 0.0)] + [Level(HALF, 100.0 / (i + 2), i * i / 97.0 + 0.01, True) for i in range(12)]
    layer = items(dict.fromkeys(SIX, levels), {"layer": SIX}, 0.0)[0]
    assert len(layer.options) <= 400
    assert min(o.us for o in layer.options) == pytest.approx(6 * 100 / 13 * (1 - SAVED))


def test_levels_of_whole_layers_are_kept_beside_faster_ones():
    faster, whole = Level(THIN, 40.0, 0.1), Level(HALF, 45.0, 0.1, True)
    assert _useful([faster, whole]) == [whole, faster]
    assert _useful([faster, Level(HALF, 45.0, 0.1)]) == [faster]


def test_near_the_best_kernel_counts_as_whole_as_in_the_plan():
    def row(kernel, us, *alternatives):
        return SimpleNamespace(kernel=kernel, us=us, dense_us=100.0, alternatives=alternatives)

    assert runs_whole(row(WHOLE, 50.0))
    assert runs_whole(row("tile-fp32", 50.0, (WHOLE, 60.0)))
    assert not runs_whole(row("tile-fp32", 50.0, (WHOLE, 70.0)))
    assert not runs_whole(row("dense", 100.0, (WHOLE, 110.0)))
    assert not runs_whole(row("tile-fp32", 50.0))
