"""What weights that fade out promise, in equal steps, on a language of 16 letters whose next letter depends on two."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.weights.train import FadePatterns, FadeValues, Straight

STEPS = 300


def loss_after(windows, method: Method, seed: int) -> float:
    """Held-out loss after training from scratch; the head stays dense."""
    inputs, labels = windows
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    run = sw.Sparsifier(model, method, optimizer, steps=STEPS, skip=["4"])
    for i in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-2 * min((i + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * i / STEPS))
        at = torch.randint(4096, len(inputs), (128,), generator=torch.Generator().manual_seed(seed * 100_000 + i))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[at]), labels[at]).backward()
        optimizer.step()
        run.step()
    run.finish()
    with torch.no_grad():
        return float(F.cross_entropy(model(inputs[:4096]), labels[:4096]))


@pytest.fixture(scope="module")
def decayed(windows) -> list[float]:
    """SR-STE at the best decay of 0, 2e-5, 2e-4 (the paper's) and 2e-3; at rates of 4e-3, 2e-2 and 4e-2 the order is the same."""
    method = sw.method("sr_ste", pattern="1:32", train=Straight(decay=2e-5))
    return [loss_after(windows, method, seed) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("mdgf_exp", FadeValues(stop=0.3)),
        ("mdgf_linear", FadeValues(start=0.0, stop=0.3)),
        ("sdgf_stepwise", FadePatterns(start=0.0, stop=0.4)),
    ],
)
def test_at_1_of_32_what_fades_loses_less_than_sr_ste(windows, decayed, name, train):
    """MdGf-exp, four seeds: 2.347 (2.342 to 2.359) against 2.437 (2.404 to 2.460); linear 2.36, stepwise 2.34 of the two here."""
    method = sw.method(name, pattern="1:32", train=train)
    faded = [loss_after(windows, method, seed) for seed in (0, 1)]
    assert max(faded) < min(decayed) - 0.04
