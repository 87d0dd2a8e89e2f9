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


def test_half_of_a_recommender_is_nearly_as_good_as_all_of_it_and_better_than_supports_of_chance(values):
    dense, half, third = (values("recommender", density=d) for d in (1.0, 0.5, 0.3))
    assert len(half["dsl"]) >= 3 and mean(half["dsl"]) > 0.97 * mean(dense["dense"])
    for other, gain in (("grown at random", 0.5), ("held at random", 2.0)):
        for cell in (half, third):
            assert min(a - b for a, b in zip(cell["dsl"], cell[other], strict=True)) > gain


def test_masks_chosen_before_training_are_no_better_than_their_densities_and_narrow_layers_are_as_good(values):
    for density, most in ((0.1, 1.0), (0.05, 2.5)):
        found = values("conv_start", density=density)
        for label in ("SNIP", "SynFlow"):
            mask, control, narrow = (mean(found[label + more]) for more in ("", ", shuffled", ", cropped"))
            assert len(found[label]) >= 3 and control > mask - 1.0 and narrow > mask - most


def test_activating_lowers_the_share_of_zeros_at_no_cost_of_accuracy(values):
    rows = importlib.import_module("rows")
    last = [r for r in rows.read(ROOT / "results" / "weights" / "conv_cycles.json")[1] if r.density < 0.05]
    zeros = {(r.label, r.record.seed): r.record.more["zeros_after_relu"] for r in last}
    assert all(zeros["AP", seed] < zeros["IMP", seed] for seed in range(5))
    found = values("conv_cycles", density=0.044)
    assert mean(found["AP"]) > mean(found["IMP"]) - 0.5 and mean(found["AP"]) > mean(found["negatives by chance"]) + 0.5
