"""Scores compose, and their needs with them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from sparseworks.core.score import Normalised, Product, Scaled, Score, Sum
from sparseworks.core.stats import Gram, InputMoments, Stats


@dataclass(frozen=True)
class Size(Score):
    def __call__(self, weight, stats):
        return weight.abs()


@dataclass(frozen=True)
class Reach(Score):
    needs = frozenset({InputMoments})

    def __call__(self, weight, stats):
        return stats[InputMoments].norm.to(weight.dtype).expand_as(weight)


@dataclass(frozen=True)
class Swept(Score):
    """A score that knows during a sweep more than before it."""

    needs = frozenset({Gram})

    def __call__(self, weight, stats):
        return torch.zeros_like(weight)

    def columns(self, weight, stats, at):
        return torch.ones_like(weight[:, at])


W = torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.5, -1.0]])


@pytest.fixture
def stats() -> Stats:
    made = Stats.collecting({InputMoments, Gram}, (2, 3))
    made.feed("input", torch.tensor([[1.0, 2.0, 3.0]]))
    return made


def test_product_sum_and_scale(stats):
    reach = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal((Size() * Reach())(W, stats), W.abs() * reach)
    assert torch.equal((Size() + Reach())(W, stats), W.abs() + reach)
    assert torch.equal((2 * Size())(W, stats), 2 * W.abs()) and Size() * 2 == 2 * Size() == Scaled(Size(), 2.0)
    assert Size() * Reach() == Product(Size(), Reach()) and Size() + Reach() == Sum(Size(), Reach())


def test_needs_are_joined():
    assert (Size() * Reach()).needs == {InputMoments}
    assert (0.5 * Reach() + Swept()).normalised().needs == {InputMoments, Gram}


def test_normalised_divides_by_the_mean_magnitude(stats):
    assert float(Size().normalised()(W, stats).mean()) == pytest.approx(1.0)
    assert Size().normalised() == Normalised(Size())
    assert torch.equal(Size().normalised()(torch.zeros(2, 3), stats), torch.zeros(2, 3))
    assert Size().normalised()(torch.zeros(0, 3), stats).shape == (0, 3)
    with_infinity = Size().normalised()(torch.tensor([[1.0, float("inf"), 3.0]]), stats)
    assert with_infinity.tolist() == [[0.5, float("inf"), 1.5]]


def test_columns_are_those_of_the_parts(stats):
    at = slice(1, 3)
    assert torch.equal(Size().columns(W, stats, at), W.abs()[:, 1:])
    assert torch.equal((Size() * Swept()).columns(W, stats, at), W.abs()[:, 1:])
    assert torch.equal((Size() + Swept()).columns(W, stats, at), W.abs()[:, 1:] + 1)
    assert torch.equal((3 * Swept()).columns(W, stats, at), torch.full((2, 2), 3.0))


def test_scores_combine_with_scores_and_numbers_only():
    for wrong in (lambda: Size() * Stats(), lambda: Size() + 1, lambda: Stats() * Size()):
        with pytest.raises(TypeError, match="unsupported operand"):
            wrong()
