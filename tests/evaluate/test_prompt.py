"""Calibration error, linear probe, visual prompt."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import CalibrationError, ShapeError
from sparseworks.evaluate import VisualPrompt, calibration_error, linear_probe


def test_calibration_error_is_the_gap_of_confidence_and_accuracy():
    logits = torch.tensor([[4.0, 0.0]]).expand(100, 2)
    sure = float(torch.tensor([4.0, 0.0]).softmax(0)[0])
    labels = torch.zeros(100, dtype=torch.long)
    labels[:30] = 1
    assert calibration_error(logits, labels) == pytest.approx(abs(sure - 0.7), abs=1e-6)
    assert calibration_error(torch.zeros(40, 2), torch.arange(40) % 2) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ShapeError):
        calibration_error(logits, labels[:3])
    with pytest.raises(CalibrationError):
        calibration_error(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))


def images(n=120):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    x = 0.1 * torch.randn(n, 1, 8, 8, generator=g)
    for i, c in enumerate(y):
        x[i, 0, 2 * int(c) : 2 * int(c) + 3] += 1
    return x, y


def test_remapping_finds_which_source_class_stands_for_a_target_class():
    x, y = images()

    class Bands(nn.Module):
        def forward(self, x):
            rows = x.mean((1, 3))
            return torch.stack([rows[:, 3:5].mean(1), rows[:, 5:7].mean(1), rows[:, 1:3].mean(1), rows[:, 0]], 1) * 20

    prompt = VisualPrompt(Bands(), size=8, inner=6, channels=1, classes=3)
    assert (prompt(x).argmax(1) == y).float().mean() < 0.5
    prompt.remap(x, y)
    assert (prompt(x).argmax(1) == y).float().mean() > 0.9
    prompt.fit(x, y, epochs=1)
    assert prompt.prompt.abs().sum() > 0
    with pytest.raises(ShapeError):
        VisualPrompt(Bands(), size=8, inner=8, channels=1, classes=3)


def test_a_linear_probe_separates_what_is_separable():
    x, y = images()
    logits = linear_probe(lambda z: z, x, y, classes=3)
    assert (logits(x).argmax(1) == y).float().mean() > 0.98
