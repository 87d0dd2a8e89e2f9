"""Dynamic swaps: the lost mean goes, patterns and counts stay, rows of any mask."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError, MissingStatError, NonFiniteError
from sparseworks.core.pattern import Pattern
from sparseworks.core.solver import Select
from sparseworks.core.stats import InputMoments, Stats
from sparseworks.repair import LeastSquares
from sparseworks.scores import InputNorm, Magnitude
from sparseworks.solve import DSnoT, ObsSweep
from sparseworks.testing.examples import gathered, random_inputs, random_weight

WANDA = Magnitude() * InputNorm()
SHAPE = (32, 1024)


def lost_mean(weight, support, stats) -> torch.Tensor:
    """|E[(W - M W) x]| of every row."""
    return ((weight * ~support.mask()).double() @ stats[InputMoments].mean).abs()


def supports(solve: DSnoT, *, score=WANDA, text: str = "row", keep: int | None = 512):
    """(weight, stats, support before, support after)."""
    weight, stats, pattern = random_weight(*SHAPE), gathered({InputMoments}, SHAPE, tokens=1024), Pattern.parse(text)
    before = solve.first(weight, stats, score, pattern, keep)[1]
    return weight, stats, before, solve(weight, stats, score, pattern, keep)[1]


@pytest.mark.parametrize(("text", "keep"), [("row", 512), ("row", 307), ("2:4", None), ("4:8", None)])
def test_the_mean_error_falls_by_more_than_half_with_few_swaps(text, keep):
    weight, stats, before, after = supports(DSnoT(), text=text, keep=keep)
    assert lost_mean(weight, after, stats).sum() < 0.5 * lost_mean(weight, before, stats).sum()
    assert bool((lost_mean(weight, after, stats) <= lost_mean(weight, before, stats) + 1e-9).all())
    most = int(0.02 * before.count / SHAPE[0])
    assert 0 < before.diff(after).dropped.count <= SHAPE[0] * max(most, 1)
    assert torch.equal(before.mask().sum(1), after.mask().sum(1)) and Pattern.parse(text).admits(after)


def test_the_first_swap_of_a_row_is_the_published_one():
    weight, stats, before, after = supports(DSnoT(cycles=1))
    moments, mask = stats[InputMoments], before.mask()
    share = weight.double() * moments.mean
    sign = (share * ~mask).sum(1, keepdim=True).sign()
    cost = (weight.abs() * moments.norm).masked_fill(~mask | (share * sign >= 0), torch.inf)
    lost, partner = (share * ~mask).sum(1, keepdim=True), cost.argmin(1, keepdim=True)
    lower = (lost + share.gather(1, partner) - share).abs() < lost.abs()
    grow = (share / moments.variance * sign).masked_fill(mask | ~lower, -torch.inf).argmax(1)
    changed = (before.mask() != after.mask()).any(dim=1)
    rows = torch.arange(SHAPE[0])[changed]
    mask[rows, grow[rows]], mask[rows, partner[rows, 0]] = True, False
    assert changed.any() and torch.equal(mask, after.mask())


def test_any_mask_and_any_values():
    for first, score in ((ObsSweep(), Magnitude()), (Select(), Magnitude())):
        solve = DSnoT(first=first, repair=LeastSquares())
        stats = gathered(solve.needs, SHAPE, tokens=1024)
        weight, pattern = random_weight(*SHAPE), Pattern.parse("row")
        new, after = solve(weight, stats, score, pattern, 512)
        before = first(weight, stats, score, pattern, 512)[1]
        assert lost_mean(weight, after, stats).sum() < 0.9 * lost_mean(weight, before, stats).sum()
        assert not torch.equal(new[after.mask()], weight[after.mask()])
    plain = DSnoT()(weight, stats, WANDA, pattern, 512)
    assert torch.equal(plain[0], weight * plain[1].mask())


@pytest.mark.parametrize("text", ["2:4@out", "4x2:4", "block:4x4", "column", "1:4:2", "vnm:4:2:8"])
def test_patterns_that_a_swap_would_break_keep_their_support(text):
    pattern = Pattern.parse(text)
    keep = None if pattern.fixed_density else pattern.counts(SHAPE, 0.5)
    _, _, before, after = supports(DSnoT(share=1.0), text=text, keep=keep)
    assert before == after


def test_a_constant_input_comes_back_first_and_an_unseen_one_never():
    stats = Stats([InputMoments(1, 5)])
    stats.feed("input", torch.tensor([[3.0, 0, 0, 0, 0], [3, 0, 2, 2, 2]]))
    weight = torch.tensor([[0.1, 5.0, 0.3, 1.0, -0.5]])
    after = DSnoT()(weight, stats, WANDA, Pattern.parse("row"), 2)[1]
    assert after.mask().tolist() == [[True, False, False, True, False]]


def test_the_registered_method_differs_from_wanda_and_refuses_what_it_cannot_do():
    weight, inputs = random_weight(16, 64), random_inputs(200, 64)
    ours, wanda = (sw.prune_matrix(weight, name, inputs=inputs)[1] for name in ("dsnot", "wanda"))
    assert ours.count == wanda.count and ours != wanda
    with pytest.raises(MissingStatError):
        sw.prune_matrix(weight, "dsnot")
    with pytest.raises(BudgetError, match="dsnot needs"):
        DSnoT(share=2.0)
    with pytest.raises(NonFiniteError, match="NaN"):
        DSnoT()(weight / 0, gathered({InputMoments}, (16, 64)), Magnitude(), Pattern.parse("row"), 32)
