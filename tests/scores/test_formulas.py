"""Every score against its formula, written as a loop over entries."""

from __future__ import annotations

import math

import pytest
import torch

from sparseworks.core.errors import CalibrationError, MissingStatError, ShapeError
from sparseworks.core.score import SCORES
from sparseworks.core.stats import (
    Gram,
    HessianGradient,
    InputMoments,
    Stats,
    SynapticFlow,
    WeightGradient,
    WeightMovement,
)
from sparseworks.scores import OBS, SNIP, Gradient, GraSP, InputNorm, Magnitude, Movement, Random, SynFlow, Taylor
from sparseworks.solve.cholesky import SweepFactor, inverse_factor

ROWS, COLS = 5, 6
ALL = {Gram, InputMoments, WeightGradient, HessianGradient, SynapticFlow, WeightMovement}
OURS = [Magnitude(), InputNorm(), OBS(), Gradient(), SNIP(), Taylor(), GraSP(), SynFlow(), Movement(), Random()]


@pytest.fixture
def facts():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    data = {"input": draw(50, COLS) @ draw(COLS, COLS), "gradient": draw(3, ROWS, COLS)}
    data |= {k: draw(2, ROWS, COLS) for k in ("hessian_gradient", "synaptic_flow", "training")}
    stats = Stats.collecting(ALL, (ROWS, COLS))
    stats.feed("input", data["input"])
    for source in ("gradient", "hessian_gradient", "synaptic_flow", "training"):
        for one in data[source]:
            stats.feed(source, one)
    return draw(ROWS, COLS), stats, {k: v.double() for k, v in data.items()}


def by_hand(name, w, data):
    x, g = data["input"], data["gradient"].mean(dim=0)
    gram = x.T @ x / len(x)
    inverse = torch.linalg.inv(gram + 0.01 * gram.diagonal().mean() * torch.eye(COLS, dtype=torch.float64))
    formulas = {
        "magnitude": lambda i, j: abs(w[i, j]),
        "input_norm": lambda i, j: math.sqrt(sum(v**2 for v in x[:, j].tolist()) / len(x)),
        "obs": lambda i, j: w[i, j] ** 2 / inverse[j, j],
        "gradient": lambda i, j: abs(g[i, j]),
        "snip": lambda i, j: abs(w[i, j] * g[i, j]),
        "taylor": lambda i, j: sum((w[i, j] * one[i, j]) ** 2 for one in data["gradient"]) / 3,
        "grasp": lambda i, j: -(-w[i, j] * data["hessian_gradient"].mean(dim=0)[i, j]),
        "synflow": lambda i, j: abs(w[i, j] * data["synaptic_flow"].mean(dim=0)[i, j]),
        "movement": lambda i, j: data["training"].mean(dim=0)[i, j],
    }
    return torch.tensor([[float(formulas[name](i, j)) for j in range(COLS)] for i in range(ROWS)])


@pytest.mark.parametrize("score", OURS[:-1], ids=lambda s: s.registered_name)
def test_formula(facts, score):
    w, stats, data = facts
    torch.testing.assert_close(score(w, stats), by_hand(score.registered_name, w.double(), data), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("score", [*OURS, Magnitude() * InputNorm(), 0.5 * Magnitude() + SNIP()], ids=str)
def test_columns_are_a_slice_of_the_whole(facts, score):
    w, stats, _ = facts
    torch.testing.assert_close(score.columns(w, stats, slice(2, 5)), score(w, stats)[:, 2:5])


@pytest.mark.parametrize("score", OURS, ids=lambda s: s.registered_name)
def test_half_precision_weights_are_scored_in_float32(facts, score):
    w, stats, _ = facts
    assert score(w.bfloat16(), stats).dtype == torch.float32
    assert tuple(score(w.bfloat16(), stats).shape) == (ROWS, COLS)


@pytest.mark.parametrize("score", OURS, ids=lambda s: s.registered_name)
def test_declares_exactly_what_it_needs(facts, score):
    w, stats, _ = facts
    enough = Stats([s for s in stats if type(s) in score.needs])
    assert torch.equal(score(w, enough), score(w, stats)) or score == Random()
    for missing in score.needs:
        with pytest.raises(MissingStatError, match=missing.__name__):
            score(w, Stats([s for s in enough if type(s) is not missing]))
        with pytest.raises(CalibrationError, match="no data"):
            score(w, Stats.collecting(score.needs, (ROWS, COLS)))
        with pytest.raises(ShapeError, match="gathered for"):
            score(w[:, :4], stats)


def test_inside_a_sweep_obs_uses_what_is_left(facts):
    w, stats, _ = facts
    upper = inverse_factor(stats[Gram], 0.01)
    known = Stats([*stats, SweepFactor(ROWS, upper)])
    h = stats[Gram].damped(0.01)
    left = torch.tensor([float(torch.linalg.inv(h[j:, j:])[0, 0]) for j in range(COLS)])
    torch.testing.assert_close(OBS()(w, known), w.square() / left, rtol=1e-4, atol=1e-6)


def test_an_input_that_never_fires_is_worth_nothing():
    w = torch.ones(2, 3)
    stats = Stats.collecting({Gram, InputMoments}, (2, 3))
    stats.feed("input", torch.tensor([[1.0, 0.0, 2.0], [2.0, 0.0, -1.0]]))
    for score in (OBS(), Magnitude() * InputNorm()):
        assert score(w, stats)[:, 1].tolist() == [0.0, 0.0]


def test_random_is_fixed_by_seed_site_and_shape():
    w = torch.zeros(8, 8)
    one = Random(3)(w, Stats(site="a"))
    assert torch.equal(one, Random(3)(w + 1, Stats(site="a")))
    for other in (Random(4)(w, Stats(site="a")), Random(3)(w, Stats(site="b"))):
        assert not torch.equal(one, other)
    assert float(one.min()) >= 0 and float(one.max()) < 1


def test_all_are_registered():
    assert {s.registered_name for s in OURS} <= set(SCORES.names())
