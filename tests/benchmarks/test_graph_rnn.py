"""Accuracy of recurrent networks told from their graphs, and the tests of significance of the unit search."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "weights"


def script(name: str):
    """A module of `benchmarks/weights`, found as when it is run."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules.get(name) or importlib.util.module_from_spec(spec)
        if name not in sys.modules:
            sys.modules[name] = module
            spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(SCRIPTS))


def test_structure_tells_the_accuracy_on_the_reber_grammar():
    """SEEN"""
    bench = script("graph_rnn")
    from sparseworks.weights.structure import graph_features, predict_quality

    graphs = bench.random_graphs(100, seed=0, nodes=(4, 12))
    quality = bench.accuracies(graphs, seed=0, steps=50, copies=1)
    features = [graph_features(g) for g in graphs]
    assert min(quality) >= 0 and max(quality) > 0.8
    assert predict_quality(features, quality, folds=5, trees=20).r2 > 0.4
    assert predict_quality(features, sorted(quality, key=lambda q: hash(q)), folds=5, trees=20).r2 < 0.1


def test_holm_by_hand():
    search = script("unit_search")
    assert search.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert search.holm([0.5, 0.9]) == [1.0, 1.0]
