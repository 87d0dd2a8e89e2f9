"""A population of models and its pruned twins."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import CalibrationError
from sparseworks.evaluate import compare_twins


def population():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=g)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()
    models = []
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(4 * (seed + 1)):  # some are trained longer than others
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        models.append(model)
    return models, x, y


def pruned(models, density, name="magnitude"):
    twins = [copy.deepcopy(m) for m in models]
    for i, twin in enumerate(twins):
        sw.prune(twin, sw.method(name, density=density), seed=i, progress=False)
    return twins


def test_magnitude_twins_agree_and_keep_the_order_of_the_population_random_ones_do_not():
    models, x, y = population()
    by_size, at_random = (compare_twins(models, pruned(models, 0.5, n), x, y) for n in ("magnitude", "random"))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    assert mean(by_size.agreement) > mean(at_random.agreement) + 0.1
    assert by_size.correlation > 0.8
    assert mean(by_size.sparse_accuracy) > mean(at_random.sparse_accuracy)
    with pytest.raises(CalibrationError):
        compare_twins(models, [], x, y)
