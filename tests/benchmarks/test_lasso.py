"""The benchmark of the lasso: its own gap is right, and a small case runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "codes" / "lasso.py"


@pytest.fixture
def lasso(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1]))
    spec = importlib.util.spec_from_file_location("benchmark_lasso", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gap_is_zero_at_the_optimum_and_bounds_the_cost_elsewhere(lasso):
    x, y = lasso.correlated(20, 40, 3)
    weight = 0.3 * np.abs(x.T @ y).max()
    solve = lasso.contenders(x, y[:, None], weight)["sparseworks"]
    assert lasso.gap(x, y[:, None], solve(1e-12), weight) < 1e-10
    cost = lambda z: ((x @ z.ravel() - y) ** 2).sum() / 2 + weight * np.abs(z).sum()  # noqa: E731
    rough = solve(1e-12) * 1.1
    missing = (cost(rough) - cost(solve(1e-12))) / ((y**2).sum() / 2)
    assert 0 < missing <= lasso.gap(x, y[:, None], rough, weight)


def test_contenders_are_set_to_the_gap_and_timed(lasso):
    x, y = lasso.correlated(20, 40, 3)
    lines, facts = lasso.case("small", x, y[:, None], 0.3, 2)
    assert all(found <= lasso.GAP for _, found in facts["tolerance_and_gap"].values())
    assert {entry.ours for entry in lines} <= {"sparseworks"}
