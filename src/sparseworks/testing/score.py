"""What every score must hold."""

from __future__ import annotations

import torch

from sparseworks.core.errors import MissingStatError
from sparseworks.core.score import Score
from sparseworks.core.stats import Stat, Stats
from sparseworks.testing.examples import example, gathered, random_weight, refused, require


def check_score(score: type[Score] | Score) -> None:
    """Shape, finiteness, types, empty weights, columns, declared needs, purity and composition of a score.

    Raises:
        AssertionError: with a sentence that names the score and what broke.
    """
    subject: Score = example(score)
    name = type(subject).__name__
    needs = subject.needs
    require(
        isinstance(needs, frozenset) and all(isinstance(k, type) and issubclass(k, Stat) for k in needs),
        f"{name}.needs must be a frozenset of Stat classes, it is {needs!r}.",
    )
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        _values(subject, name, dtype)
    for shape in ((0, 8), (6, 0), (1, 1)):
        scores = subject(torch.zeros(shape), gathered(needs, shape))
        require(scores.shape == shape, f"{name} gives shape {tuple(scores.shape)} for an empty or tiny weight {shape}.")
    _columns(subject, name)
    if subject.rowwise:
        _rows(subject, name)
    _composes(subject, name)
    if needs:
        refused(
            lambda: subject(random_weight(6, 8), Stats()),
            MissingStatError,
            f"{name} must raise MissingStatError when what it needs was not gathered.",
        )


def _values(score: Score, name: str, dtype: torch.dtype) -> None:
    weight = random_weight(6, 8, dtype=dtype)
    before, stats = weight.clone(), gathered(score.needs, (6, 8))
    state = [{k: v.clone() for k, v in s.state().items()} for s in stats]
    scores = score(weight, stats)
    require(scores.shape == weight.shape, f"{name} gives shape {tuple(scores.shape)} for a weight of (6, 8).")
    require(scores.is_floating_point(), f"{name} gives {scores.dtype}; scores are floating point.")
    require(bool(torch.isfinite(scores).all()), f"{name} gives NaN or infinity for a finite {dtype} weight.")
    require(torch.equal(score(weight, stats), scores), f"{name} gives other scores when called again.")
    require(torch.equal(weight, before), f"{name} changes the weight it scores.")
    same = all(torch.equal(v, old[k]) for s, old in zip(stats, state, strict=True) for k, v in s.state().items())
    require(same, f"{name} changes the statistics it reads.")
    again = score(weight.clone(), gathered(score.needs, (6, 8)))
    require(torch.equal(again, scores), f"{name} depends on something besides weight and statistics.")


def _columns(score: Score, name: str) -> None:
    weight, stats = random_weight(6, 8), gathered(score.needs, (6, 8))
    whole = score(weight, stats)
    for at in (slice(0, 3), slice(2, 8), slice(4, 4)):
        part = score.columns(weight, stats, at)
        require(
            part.shape == whole[:, at].shape and torch.allclose(part, whole[:, at], rtol=1e-5, atol=1e-7),
            f"{name}.columns({at}) differs from the same columns of the whole.",
        )


def _rows(score: Score, name: str) -> None:
    weight, stats = random_weight(6, 8), gathered(score.needs, (6, 8))
    whole = score(weight, stats)
    for at in (slice(0, 1), slice(2, 6)):
        some = Stats([s.as_rows(at.stop - at.start) for s in stats], site=stats.site)
        require(
            torch.equal(score(weight[at], some), whole[at]),
            f"{name} says that it goes row by row, but scores rows {at.start} to {at.stop} differently alone.",
        )


def _composes(score: Score, name: str) -> None:
    weight, stats = random_weight(6, 8), gathered(score.needs, (6, 8))
    own = score(weight, stats)
    for composed, expected in ((score * score, own * own), (score + score, 2 * own), (0.5 * score, 0.5 * own)):
        require(composed.needs == score.needs, f"{name} loses its needs in {type(composed).__name__}.")
        require(
            torch.allclose(composed(weight, stats), expected), f"{name} does not compose in {type(composed).__name__}."
        )
    mean = float(score.normalised()(weight, stats).abs().mean())
    require(abs(mean - 1) < 1e-4 or not bool(own.any()), f"{name}.normalised() has mean magnitude {mean}, not 1.")
