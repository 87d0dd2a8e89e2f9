"""The knee of one-shot pruning, and how alike supports are."""

from __future__ import annotations

import copy

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.schedule import Survivors
from sparseworks.core.support import Support
from sparseworks.report.plots import sweep
from sparseworks.stream import sites
from sparseworks.weights import essential_sparsity, overlap
from sparseworks.weights.essential import knee


def test_the_knee_is_the_last_level_before_the_first_loss():
    assert knee((0.1, 0.2, 0.3, 0.4), (0.0, -0.1, 0.01, 0.5), 0.02) == 0.3
    assert knee((0.1, 0.2, 0.3), (0.5, 0.0, 0.0), 0.02) == 0.0
    assert knee((0.3, 0.1, 0.2), (0.5, 0.0, float("nan")), 0.02) == 0.1


def test_a_trained_model_has_a_knee_that_moves_right_with_training(digits):
    torch.manual_seed(0)
    untrained = digits.train(type(digits.trained)(), 40)
    short, long = (
        essential_sparsity(m, digits.accuracy, higher_is_better=True, tolerance=0.02, patterns=("2:4", "1:4"))
        for m in (untrained, digits.trained)
    )
    assert 0.2 <= short.knee < long.knee - 0.1
    assert long.labels.index("2:4") == long.labels.index("50%") + 1 and long.sparsities == tuple(
        sorted(long.sparsities)
    )
    assert long.drops[-1] > 0.1 and "<svg" in sweep(long.to_data()) and long.to_data()["knee"] == long.knee


def test_tuning_moves_the_knee_to_the_right_and_holds_the_support(digits):
    from sparseworks.weights.enforce import keep_support

    def tune(model, supports):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        handle = keep_support(optimizer, model, sites(model), supports)
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(digits.x), digits.y).backward()
            optimizer.step()
        handle.remove()

    options = {"sparsities": (0.8, 0.9), "higher_is_better": True}
    plain, tuned = (essential_sparsity(digits.trained, digits.accuracy, tune=t, **options) for t in (None, tune))
    assert tuned.values[0] > plain.values[0] and tuned.values[1] > plain.values[1]


def test_overlap_is_high_below_the_knee_and_falls_after(digits):
    def supports(model, density):
        return sw.prune(copy.deepcopy(model), sw.method("magnitude", density=density), progress=False).supports

    other = digits.train(copy.deepcopy(digits.trained), 60, seed=1)
    shares = [overlap(supports(digits.trained, d), supports(other, d)) for d in (0.9, 0.5, 0.1)]
    assert 1 > shares[0] > shares[1] > shares[2] > 0.1 / 1.9
    whole = supports(other, 0.5)
    assert overlap(whole, whole) == 1.0 and overlap({"a": Support.empty((2, 2))}, {"a": Support.full((2, 2))}) == 0.0
    with pytest.raises(ShapeError, match="different sites"):
        overlap(whole, {})


def test_supports_of_one_shot_are_near_those_of_iterative_pruning_below_the_knee_and_leave_them_after(digits):
    """From the same first weights, trained on batches in another order."""
    torch.manual_seed(0)
    first, tickets = type(digits.trained)(), {}
    dense = digits.train(copy.deepcopy(first), 80, seed=1)
    sw.cycles(
        first, sw.method("imp", density=0.1296, schedule=Survivors(0.4)), lambda m, lap: digits.train(m, 80, seed=0).train(),
        steps=80, each=lambda done, m, supports: tickets.setdefault(round(done.density, 2), supports), progress=False,
    )  # fmt: skip
    near = {}
    for density in (0.6, 0.22, 0.13):
        method = sw.method("magnitude_global", density=density)
        found = sw.prune(copy.deepcopy(dense), method, progress=False).supports
        near[density] = overlap(found, tickets[density])
    assert near[0.6] > near[0.22] + 0.1 > near[0.13] + 0.1, near
    assert near[0.6] > 0.8 and all(share > d / (2 - d) + 0.2 for d, share in near.items()), near


def test_refuses_levels_out_of_range(digits):
    with pytest.raises(BudgetError, match="inside"):
        essential_sparsity(digits.trained, digits.loss, sparsities=(0.5, 1.0))
