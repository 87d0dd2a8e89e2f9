"""Averages of states, greedy ones, and batch normalisation after them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import CalibrationError, ShapeError
from sparseworks.weights import average, greedy_average, recalibrate
from sparseworks.weights.cycles.activate import activated


def states(*seeds):
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        found.append(nn.Linear(4, 3).state_dict())
    return found


def test_the_average_is_the_mean_and_keeps_common_zeros():
    a, b = states(0, 1)
    mask = torch.rand(3, 4) < 0.5
    for s in (a, b):
        s["weight"] *= mask
    found = average([a, b])
    assert torch.allclose(found["weight"], (a["weight"] + b["weight"]) / 2)
    assert torch.equal(found["weight"] != 0, mask)
    with pytest.raises(CalibrationError):
        average([])
    with pytest.raises(ShapeError):
        average([a, nn.Linear(5, 3).state_dict()])


def test_a_greedy_average_takes_only_what_does_not_hurt():
    model, parts = nn.Linear(4, 3), states(0, 1, 2)
    target = (parts[0]["weight"] + parts[1]["weight"]) / 2
    chosen = greedy_average(model, parts, lambda m: -float((m.weight.detach() - target).square().sum()))
    assert set(chosen) == {0, 1}
    assert torch.allclose(model.weight, target)


def test_recalibration_gives_the_statistics_of_the_data_and_leaves_modes():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).eval()
    batches = [torch.randn(20, 3) * 2 + 1 for _ in range(3)]
    recalibrate(model, batches)
    hidden = [model[0](x) for x in batches]
    assert torch.allclose(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0), atol=1e-5)
    assert not any(m.training for m in model.modules()) and model[1].momentum == 0.1
    with pytest.raises(CalibrationError, match="fifth"):
        recalibrate(model, [])


def test_negative_weights_that_moved_least_go_first():
    w = {"a": torch.tensor([[-1.0, -2.0, 0.1], [3.0, -4.0, -5.0]])}
    began = {"a": w["a"] + torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.3, 0.9]])}
    mask = {"a": torch.tensor([[True, True, True], [True, True, False]])}
    found = activated(w, began, mask, 3)["a"]
    assert found.tolist() == [[True, False, True], [True, False, False]]
    fewer = activated(w, began, mask, 1)["a"]  # no negative ones are left: the rest by magnitude
    assert fewer.tolist() == [[False, False, False], [True, False, False]]
