from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError, MissingStatError, NonFiniteError
from sparseworks.core.pattern import ROW, Pattern, Tile
from sparseworks.core.select import select
from sparseworks.core.solver import masked
from sparseworks.core.stats import Gram, Stats
from sparseworks.scores import OBS, Magnitude
from sparseworks.solve import ADMM, ObsSweep
from sparseworks.solve.cholesky import inverse_diagonal, inverse_factor
from sparseworks.solve.guard import keep_better


def reference(weight, gram, *, block, keep_in_block=None, nm=None, mask=None, damp=0.01):
    """The published loop, written out: column by column, entry by entry."""
    h = gram.damped(damp)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    w, kept = weight.double().clone(), torch.zeros(weight.shape, dtype=torch.bool)
    rows, cols = w.shape
    for start in range(0, cols, block):
        end = min(start + block, cols)
        saliency = w[:, start:end] ** 2 / upper.diagonal()[start:end] ** 2
        if keep_in_block is not None:
            best = saliency.flatten().argsort(descending=True)[: keep_in_block * rows * (end - start) // 100]
            kept[:, start:end] = (
                torch.zeros(saliency.numel(), dtype=torch.bool).index_fill(0, best, True).view_as(saliency)
            )
        for j in range(start, end):
            if nm is not None and j % nm[1] == 0:
                now = w[:, j : j + nm[1]] ** 2 / upper.diagonal()[j : j + nm[1]] ** 2
                kept[:, j : j + nm[1]].scatter_(1, now.argsort(dim=1, descending=True)[:, : nm[0]], True)
            if mask is not None:
                kept[:, j] = mask[:, j]
            for r in range(rows):
                if kept[r, j]:
                    continue
                e = w[r, j] / upper[j, j]
                w[r, j:] -= e * upper[j, j:]
                w[r, j] = 0.0
    return w, kept


def test_unstructured_equals_the_literal_loop(layer):
    weight, stats, _ = layer(12, 40, dtype=torch.float64)
    pattern = Pattern.parse("tensor")
    new, support = ObsSweep(block=16)(weight, stats, OBS(), pattern, pattern.counts(weight.shape, 0.5))
    expected, kept = reference(weight, stats[Gram], block=16, keep_in_block=50)
    assert torch.equal(support.mask(), kept)
    torch.testing.assert_close(new, expected, rtol=1e-8, atol=1e-10)


def test_n_of_m_equals_the_literal_loop(layer):
    weight, stats, _ = layer(12, 40, dtype=torch.float64)
    new, support = ObsSweep(block=16)(weight, stats, OBS(), Pattern.parse("2:4"), None)
    expected, kept = reference(weight, stats[Gram], block=16, nm=(2, 4))
    assert torch.equal(support.mask(), kept)
    torch.testing.assert_close(new, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("pattern", [Pattern(unit=ROW), Pattern(group=ROW).then(Pattern.parse("1:2"))])
def test_patterns_that_no_block_decides_choose_first(layer, pattern):
    weight, stats, _ = layer(8, 16, dtype=torch.float64)
    keep = pattern.counts(weight.shape, 0.5)
    new, support = ObsSweep()(weight, stats, OBS(), pattern, keep)
    first = select(OBS()(weight, stats), pattern, keep)
    assert support == first
    expected, _ = reference(weight, stats[Gram], block=16, mask=first.mask())
    expected = keep_better(weight, expected, masked(weight, first), stats[Gram].matrix)
    torch.testing.assert_close(new, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("density", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("pattern", ["tensor", "row", "column", "global", "block:2x4"])
def test_counts_are_exact(layer, pattern, density):
    weight, stats, _ = layer(16, 40)
    p = Pattern.parse(pattern)
    keep = p.counts(weight.shape, density)
    _, support = ObsSweep(block=16)(weight, stats, OBS(), p, keep)
    unit = math.prod(p.unit.sizes(weight.shape))
    assert support.count == int(keep.sum()) * unit
    assert p.admits(support)


def test_rows_keep_their_own_ragged_counts(layer):
    weight, stats, _ = layer(6, 32)
    keep = torch.tensor([0, 3, 8, 16, 31, 32])
    _, support = ObsSweep(block=8)(weight, stats, OBS(), Pattern(group=ROW), keep)
    assert torch.equal(support.kept(Tile(1, None)), keep)


def test_dead_inputs_lose_their_weights(layer):
    weight, stats, x = layer(8, 16)
    x[:, 3] = 0
    stats = Stats.collecting({Gram}, (8, 16))
    stats.feed("input", x)
    new, support = ObsSweep()(weight, stats, OBS(), Pattern.parse("2:4"), None)
    assert bool((new[:, 3] == 0).all()) and not bool(support.mask()[:, 3].any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_keeps_the_dtype(layer, dtype):
    weight, stats, _ = layer(8, 16, dtype=dtype)
    new, _ = ObsSweep()(weight, stats, OBS(), Pattern.parse("2:4"), None)
    assert new.dtype == dtype


def test_refuses_what_it_cannot_sweep(layer):
    weight, stats, _ = layer(8, 16)
    with pytest.raises(MissingStatError, match="Gram"):
        ObsSweep()(weight, Stats(), Magnitude(), Pattern.parse("2:4"), None)
    with pytest.raises(BudgetError, match="how many"):
        ObsSweep()(weight, stats, OBS(), Pattern.parse("row"), None)
    with pytest.raises(BudgetError, match="cannot keep"):
        ObsSweep()(weight, stats, OBS(), Pattern.parse("row"), 17)
    for wrong in ({"block": 0}, {"damp": -1.0}):
        with pytest.raises(BudgetError, match="obs_sweep needs"):
            ObsSweep(**wrong)
    with pytest.raises(NonFiniteError):
        ObsSweep()(weight.clone().fill_(torch.nan), stats, OBS(), Pattern.parse("2:4"), None)


def test_factor_is_that_of_the_inverse(layer):
    _, stats, _ = layer(4, 24)
    gram = stats[Gram]
    inverse = torch.linalg.inv(gram.damped(0.01))
    torch.testing.assert_close(inverse_factor(gram, 0.01), torch.linalg.cholesky(inverse, upper=True))
    torch.testing.assert_close(inverse_diagonal(gram, 0.01), inverse.diagonal())


def test_factor_in_blocks_is_the_factor_and_leaves_the_statistics_alone(layer, monkeypatch):
    _, stats, _ = layer(4, 23)
    total, whole = stats[Gram].total.clone(), inverse_factor(stats[Gram], 0.01)
    monkeypatch.setattr("sparseworks.solve.cholesky._BLOCK", 5)
    monkeypatch.setattr("sparseworks.solve.cholesky._AT_ONCE", 7)
    torch.testing.assert_close(inverse_factor(stats[Gram], 0.01), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(stats[Gram].total, total) and bool((whole.tril(-1) == 0).all())


def test_singular_moments_get_just_enough_damping():
    gram = Gram(4, 8)
    gram.update(torch.ones(3, 8))
    assert bool(torch.isfinite(inverse_factor(gram, 0.0)).all())


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), solver=st.sampled_from([ObsSweep(block=4), ADMM()]), keep=st.integers(0, 12))
def test_solvers_never_raise_the_calibrated_error(seed, solver, keep):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 12, generator=g)
    stats = Stats.collecting({Gram}, (5, 12))
    stats.feed("input", torch.randn(15, 12, generator=g) @ torch.randn(12, 12, generator=g))
    new, support = solver(weight, stats, Magnitude(), Pattern.parse("row"), keep)
    assert bool((new[~support.mask()] == 0).all()) and support.count == 5 * keep
    error = lambda w: stats[Gram].error(w - weight)  # noqa: E731
    assert bool((error(new) <= error(masked(weight, support)) * (1 + 1e-6)).all())
