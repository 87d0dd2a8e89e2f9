"""What methods' texts claim to have been seen is in the stored rows, seed by seed."""

from __future__ import annotations

import importlib
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def values(monkeypatch):
    """(benchmark, part of its task, density) -> label -> values in the order of seeds."""
    monkeypatch.syspath_prepend(str(ROOT / "weights"))
    rows = importlib.import_module("rows")

    def read(name: str, task: str = "", density: float | None = None) -> dict[str, list[float]]:
        found: dict[str, dict[int, float]] = {}
        for row in rows.read(ROOT / "results" / "weights" / f"{name}.json")[1]:
            if task in row.record.task and (density is None or abs(row.density - density) < 1e-3):
                found.setdefault(row.label, {})[row.record.seed] = row.record.value
        return {label: [own[s] for s in sorted(own)] for label, own in found.items()}

    return read


def test_accuracy_of_graph_networks_is_told_by_their_structure(values):
    found = values("graph_rnn")
    assert len(found["all features"]) >= 3 and min(found["all features"]) > 0.4
    assert max(found["all features, accuracies shuffled"]) < 0 and max(found["nodes and edges"]) < 0.4


def test_matched_groups_are_better_than_chance_and_growth_by_correlation_than_growth_by_chance(values):
    found = values("modular", density=0.25)
    held = [a - b for a, b in zip(found["g2g"], found["at random"], strict=True)]
    grown = [a - b for a, b in zip(found["g2gnet"], found["g2g, rewired"], strict=True)]
    assert len(held) >= 5 and min(held) > 0 and mean(held) > 0.2
    assert mean(grown) > 0.1 and sum(gain > 0 for gain in grown) >= 4
