"""The order of the baselines on one correlated layer: a wrong order means a wrong implementation."""

from __future__ import annotations

import pytest

from sparseworks.core.pattern import Pattern
from sparseworks.core.solver import Select
from sparseworks.core.stats import Gram
from sparseworks.repair import LeastSquares
from sparseworks.scores import OBS, InputNorm, Magnitude
from sparseworks.solve import ADMM, ObsSweep

WANDA = Magnitude() * InputNorm()
METHODS = {
    "magnitude": (Magnitude(), Select()),
    "wanda": (WANDA, Select()),
    "sparsegpt": (OBS(), ObsSweep()),
    "wanda + least squares": (WANDA, Select(LeastSquares())),
    "admm": (WANDA, ADMM()),
}
PUBLISHED = {"tensor": (0.032, 0.010, 0.004), "2:4": (0.078, 0.032, 0.012)}


def errors(layer, pattern: str, density: float = 0.5) -> dict[str, float]:
    weight, stats, _ = layer(256, 256)
    p = Pattern.parse(pattern)
    keep = p.counts(weight.shape, density)
    gram = stats[Gram]
    found = {}
    for name, (score, solver) in METHODS.items():
        new, support = solver(weight, stats, score, p, keep)
        assert p.admits(support)
        assert support.count == 32768 if density == 0.5 else True
        assert bool((new[~support.mask()] == 0).all())
        found[name] = float(gram.error(new - weight).sum() / gram.error(weight).sum())
    return found


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_orders_of_size(layer, pattern):
    found = errors(layer, pattern)
    for name, size in zip(("magnitude", "wanda", "sparsegpt"), PUBLISHED[pattern], strict=True):
        assert size / 2 < found[name] < size * 2, (name, found)
    assert found["magnitude"] > 2 * found["wanda"] > 4 * found["sparsegpt"]
    assert found["sparsegpt"] > found["wanda + least squares"] > found["admm"]


@pytest.mark.parametrize("pattern", ["row", "fan-in", "4:8", "2:4@out", "16x2:4", "vnm:16:2:8", "block:4x1", "columns"])
def test_every_repair_beats_masking_in_every_pattern(layer, pattern):
    found = errors(layer, pattern, Pattern.parse(pattern).fixed_density or 0.6)
    assert found["wanda"] > found["wanda + least squares"]
    assert found["wanda"] > found["sparsegpt"]
    assert found["wanda"] > found["admm"]
