"""The default solver chooses by score and repairs by a repair; outside the support there are exact zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparseworks.core.patterns import parse
from sparseworks.core.score import Score
from sparseworks.core.select import select
from sparseworks.core.solver import Nothing, Repair, Select, masked
from sparseworks.core.stats import Gram, Stats
from sparseworks.core.support import Support


@dataclass(frozen=True)
class Size(Score):
    def __call__(self, weight, stats):
        return weight.abs()


@dataclass(frozen=True)
class Doubled(Repair):
    needs = frozenset({Gram})

    def __call__(self, weight, support, stats):
        return masked(2 * weight, support)

    def bias(self, weight, repaired, stats):
        return (weight - repaired).sum(1)


W = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def test_masked_gives_exact_zeros_even_where_the_weight_is_not_finite():
    weight = torch.tensor([[1.0, float("nan")], [float("inf"), -0.0]])
    out = masked(weight, Support.from_mask(torch.tensor([[True, False], [False, True]])))
    assert out.tolist() == [[1.0, 0.0], [0.0, 0.0]] and out.dtype == weight.dtype
    assert masked(W.bfloat16(), Support.full((4, 8))).dtype == torch.bfloat16


def test_select_then_nothing():
    weight, support = Select()(W, Stats(), Size(), parse("2:4"), None)
    assert support == select(W.abs(), parse("2:4"))
    assert torch.equal(weight, torch.where(support.mask(), W, 0.0))
    assert Nothing().bias(W, weight, Stats()) is None


def test_select_passes_the_repair_its_weight_support_and_bias():
    solver = Select(Doubled())
    weight, support = solver(W, Stats(), Size(), parse("row"), 3)
    assert torch.equal(weight, torch.where(support.mask(), 2 * W, 0.0))
    assert solver.needs == {Gram}
    bias = solver.bias(W, weight, Stats())
    assert bias is not None and torch.equal(bias, (W - weight).sum(1))


def test_two_solvers_are_independent():
    assert Select() == Select() and Select().repair is not None and Select(Doubled()) != Select()
