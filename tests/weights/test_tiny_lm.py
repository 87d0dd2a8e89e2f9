"""The shipped decoder tells methods from their baselines: the orders of the literature hold on it with little data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest

import sparseworks as sw
from sparseworks.evaluate import Perplexity, documentation_passages, lm_batches, lm_windows
from sparseworks.io import load_tokenizer

NAME = "sparseworks/tiny-lm"
LENGTH = 128
LATER_HALF = ("model.layers.[3-5].*",)
FEW = ("*.down_proj", "model.layers.[1-5].*")
"""Left dense to spare time: half of the blocks, and all but the first where every row is a system to solve."""


@pytest.fixture(scope="module")
def perplexity() -> Callable[..., float]:
    """`perplexity(method, skip, pattern=, repair=)` after pruning on 16 windows of text; without a method, of the dense model."""
    tokenizer, dense = load_tokenizer(NAME), sw.load(NAME)
    data = lm_batches([p.whole for p in documentation_passages()[:100]], tokenizer, LENGTH, samples=16)
    held_out = [p.whole for p in documentation_passages(held_out=True)[:100]]
    task = Perplexity(lm_windows(held_out, tokenizer, LENGTH, samples=16).flatten(), LENGTH)

    @cache
    def measure(name: str = "", skip: tuple[str, ...] = (), **changes: str) -> float:
        model = copy.deepcopy(dense)
        if name:
            sw.prune(model, sw.method(name, **changes), data, skip=skip, progress=False)
        return task(model).value

    return measure


@pytest.mark.parametrize(
    ("pattern", "wanda_over_magnitude", "sparsegpt_over_wanda"),
    [({}, 0.99, 0.97), ({"pattern": "2:4"}, 0.97, 0.92)],
    ids=["50 %", "2:4"],
)
def test_sparsegpt_beats_wanda_and_wanda_beats_magnitude(
    perplexity, pattern, wanda_over_magnitude, sparsegpt_over_wanda
):
    magnitude, wanda, sparsegpt = (
        perplexity(name, LATER_HALF, **pattern) for name in ("magnitude", "wanda", "sparsegpt")
    )
    assert wanda < wanda_over_magnitude * magnitude
    assert sparsegpt < sparsegpt_over_wanda * wanda
    assert 1.02 * perplexity() < sparsegpt


@pytest.mark.parametrize(
    ("mask", "pattern"),
    [("magnitude_row", {}), ("wanda", {}), ("wanda", {"pattern": "2:4"})],
    ids=["magnitude", "Wanda", "Wanda 2:4"],
)
def test_least_squares_improves_a_mask(perplexity, mask, pattern):
    masked, repaired = (perplexity(mask, FEW, repair=repair, **pattern) for repair in ("none", "least_squares"))
    assert repaired < 0.99 * masked
    assert perplexity() < repaired
