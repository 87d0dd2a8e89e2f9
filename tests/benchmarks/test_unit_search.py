"""Levels of significance of the search for units."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("sklearn")


@pytest.fixture
def script(monkeypatch):
    """Gives a module of `benchmarks/weights` by its name, found as when it is run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "weights"))
    return importlib.import_module


def test_holm_by_hand(script):
    search = script("unit_search")
    assert search.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert search.holm([0.5, 0.9]) == [1.0, 1.0]
