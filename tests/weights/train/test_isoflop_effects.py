"""What larger sparse layers promise at the cost of dense ones, on digits."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sparseworks as sw


def narrow(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))


def loss_after(digits, model, seed: int, found=None, drop: float = 0.3, steps: int = 300) -> float:
    """Held-out loss after a training with one and the same recipe."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    run = None
    if found is not None:
        method = found.method()
        method = method.with_(train=replace(method.train, every=10), schedule=replace(method.schedule, start=drop))
        run = sw.Sparsifier(model, method, optimizer, steps=steps, sites=found.sites, seed=seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(len(digits.x), (64,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(digits.x[at]), digits.y[at]).backward()
        optimizer.step()
        schedule.step()
        if run:
            run.step()
    with torch.no_grad():
        return float(cross_entropy(model(digits.x_test), digits.y_test))


def test_wide_is_better_than_dense_at_equal_cost_and_moving_supports_than_fixed_ones(digits):
    dense, wide, fixed = [], [], []
    for seed in (0, 1, 2):
        model = narrow(seed)
        moving, still = (sw.isoflop(model, "wide", sparsity=0.75, seed=seed) for _ in range(2))
        dense.append(loss_after(digits, model, seed))
        wide.append(loss_after(digits, moving.model, seed, moving))
        fixed.append(loss_after(digits, still.model, seed, still, drop=0.0))
    assert mean(wide) < 0.85 * mean(dense) and mean(wide) < 0.85 * mean(fixed)
