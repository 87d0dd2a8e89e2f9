"""What soft ways to zero promise, on digits: each effect against the method's own baseline."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.core.schedule import Annealing, Constant
from sparseworks.weights.train import SoftShrink

STEPS = 300


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    images, labels = torch.tensor(found.images, dtype=torch.float32).flatten(1) / 16 - 0.3, torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


def loss_after(digits, method: Method, seed: int = 0) -> float:
    """Held-out loss after training from scratch."""
    images, labels = digits
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    run = sw.Sparsifier(model, method, optimizer, steps=STEPS)
    for i in range(STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * min((i + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * i / STEPS))
        at = torch.randint(0, 1200, (64,), generator=torch.Generator().manual_seed(seed * 100_000 + i))
        optimizer.zero_grad()
        F.cross_entropy(model(images[at]), labels[at]).backward()
        optimizer.step()
        run.step()
    run.finish()
    with torch.no_grad():
        return float(F.cross_entropy(model(images[1200:]), labels[1200:]))


def test_soft_shrinkage_is_better_than_hard_thresholds_and_than_one_cut(digits):
    soft, hard, cut = (
        loss_after(digits, sw.method("iss_p", density=0.03, train=SoftShrink(factor=f))) for f in (0.95, 0.0, 1.0)
    )
    assert soft < hard and soft < cut


def test_annealed_gradients_of_dropped_weights_are_better_than_none(digits):
    annealed, none = (
        loss_after(digits, sw.method("autosparse_topk", density=0.03, schedule=schedule))
        for schedule in (Annealing(), Constant(0.0))
    )
    assert annealed < 0.5 * none
