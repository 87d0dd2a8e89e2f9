"""Thresholds on the factors of norms: which units go, the floor, sections, and a penalty that falls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError
from sparseworks.stream import dependency_groups
from sparseworks.weights.train import ThresholdGammas, keep_above

SCORES = {
    "a.0.channels": torch.tensor([5.0, 6.0, 7.0, 8.0]),
    "b.0.channels": torch.tensor([0.1, 0.3, 0.2, 0.4]),
    "b.3.channels": torch.tensor([0.5, 0.6]),
}


def counts(kept):
    return [int(mask.sum()) for mask in kept.values()]


def test_one_threshold_takes_the_lowest_of_all():
    kept = keep_above(SCORES, 4)
    assert counts(kept) == [4, 1, 1] and kept["b.0.channels"].tolist() == [False, False, False, True]
    assert kept["b.3.channels"].tolist() == [False, True]
    assert counts(keep_above(SCORES, 0)) == [4, 4, 2]


def test_a_floor_holds_in_every_coupling():
    kept = keep_above(SCORES, 4, floor=0.5)
    assert counts(kept) == [3, 2, 1] and not kept["a.0.channels"][0]
    with pytest.raises(BudgetError, match="floor of 50%"):
        keep_above(SCORES, 6, floor=0.5)


@pytest.mark.parametrize("sections", ["modules", (("a*",),), (("a.0*",), ("b*",))])
def test_every_section_loses_the_same_share(sections):
    kept = keep_above(SCORES, 5, sections=sections)
    assert counts(kept) == [2, 1, 2] or counts(kept) == [2, 1, 1]
    assert kept["a.0.channels"].tolist() == [False, False, True, True]


def test_sections_that_cannot_be_are_refused():
    with pytest.raises(BudgetError, match="names none"):
        keep_above(SCORES, 2, sections=(("c*",),))
    with pytest.raises(BudgetError, match='"modules"'):
        keep_above(SCORES, 2, sections="layers")  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="share"):
        ThresholdGammas(floor=1.5)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Conv2d(8, 2, 1),
    )


def test_the_penalty_falls_with_the_run():
    x, rate = torch.randn(4, 1, 6, 6), 0.1
    model = net()
    method = sw.method("yolov8_cwd", density=0.5, train=ThresholdGammas(rate=rate, fall=0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    run = sw.Sparsifier(model, method, optimizer, steps=4, couplings=dependency_groups(model, x))
    seen = []
    for _ in range(4):
        optimizer.zero_grad()
        (0 * model(x).sum()).backward()
        before = model[0][1].weight.detach().clone()
        optimizer.step()
        seen.append(float((before - model[0][1].weight.detach()).mean() / 1e-3))
        run.step()
    assert seen[:3] == pytest.approx([rate, 0.875 * rate, 0.75 * rate], rel=1e-3)


def test_what_is_cut_computes_what_the_masked_model_did():
    x = torch.randn(4, 1, 6, 6)
    model = net()
    with torch.no_grad():
        model[1][1].weight.mul_(0.01)
    method = sw.method("group_channels", density=0.5)
    run = sw.Sparsifier(
        model, method, torch.optim.SGD(model.parameters(), lr=0.0), steps=1, couplings=dependency_groups(model, x)
    )
    run.finish()
    model.eval()
    masked = model(x)
    assert [int(k.sum()) for k in run.slice().values()] == [4, 4]  # one threshold would empty the second
    assert model[1][0].weight.shape == (4, 4, 3, 3) and torch.allclose(model(x), masked, atol=1e-6)
