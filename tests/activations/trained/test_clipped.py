"""Clipped sparse activations: length maps, and that deep nets train with the clip and run away without."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from sparseworks.activations.measure import measure_nonzeros
from sparseworks.activations.trained import ClippedSparse, Neurons, sparse_init
from sparseworks.core.errors import BudgetError, ModelError


@pytest.mark.parametrize(("clip", "slope", "bend"), [(math.inf, 1.0, 0.76), (1.0, 0.603, -0.10), (0.5, 0.295, -0.18)])
def test_length_map_at_its_fixed_point(clip, slope, bend):
    v, first, second = ClippedSparse(1.0, clip).stability()
    assert v == pytest.approx(1.0, abs=1e-9)
    assert first == pytest.approx(slope, abs=1e-3) and second == pytest.approx(bend, abs=0.01)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("clip", [0.3, 1.0, 2.5, math.inf])
def test_slope_formula_equals_the_quadrature(tau, clip, symmetric):
    activation = ClippedSparse(tau, clip, symmetric)
    assert activation.stability()[1] == pytest.approx(activation.slope, abs=1e-6)


@pytest.mark.parametrize(
    "activation", [ClippedSparse(1.0, 0.8), ClippedSparse(1.4, 1.0, True), ClippedSparse(1.0, math.inf)]
)
def test_formulas_against_samples(activation):
    z = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))
    out = activation(z)
    assert float((out == 0).float().mean()) == pytest.approx(activation.sparsity, abs=2e-3)
    derivative = ((out != 0) & (out.abs() < activation.clip)).float().mean()
    assert activation.weight_variance * float(derivative) == pytest.approx(1.0, rel=0.01)
    for q in (0.5, 1.0, 2.0):
        sampled = activation.weight_variance * float(activation(q**0.5 * z).square().mean()) + activation.bias_variance
        assert float(activation.length(torch.tensor(q))) == pytest.approx(sampled, rel=0.01)


def deep(clip, depth=30, width=192):
    activation = ClippedSparse(1.0, clip)
    layers: list[nn.Module] = [nn.Linear(64, width)]
    for _ in range(depth - 2):
        layers += [Neurons(activation), nn.Linear(width, width)]
    return sparse_init(nn.Sequential(*layers, Neurons(activation), nn.Linear(width, 10)), activation)


def digits():
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels)
    x = (x - x.mean(dim=0)) / (x.std(dim=0) + 0.1)
    return x / x.square().mean(dim=1, keepdim=True).sqrt(), y


def test_signal_survives_fifty_layers_with_the_clip_only():
    x, _ = digits()
    sizes = {}
    for clip in (1.0, math.inf):
        with torch.no_grad():
            h, model = x[:256], deep(clip, depth=50)
            sizes[clip] = [
                float(h.square().mean())
                for layer in model
                if (h := layer(h)) is not None and isinstance(layer, nn.Linear)
            ]
    assert all(0.3 < q < 3 for q in sizes[1.0])
    assert max(sizes[math.inf]) > 1e6


def test_thirty_layers_train_at_84_percent_zeros_with_the_clip_only():
    x, y = digits()

    def train(clip):
        model, g, losses = deep(clip), torch.Generator().manual_seed(0), []
        optimizer = torch.optim.SGD(model.parameters(), lr=3e-3, momentum=0.9)
        while len(losses) < 120 and all(map(math.isfinite, losses[-1:])):
            at = torch.randint(0, 1200, (100,), generator=g)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[at]), y[at])
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return model, losses

    model, losses = train(1.3)
    counts = measure_nonzeros(model, [x[1200:]])
    zeros = 1 - sum(c.share for c in counts.values()) / len(counts)
    assert 0.8 < zeros < 0.9
    assert sum(losses[-10:]) / 10 < 1.9 < 2.2 < sum(losses[:10]) / 10
    _, ran_away = train(math.inf)
    assert not math.isfinite(ran_away[-1]) and len(ran_away) < 10


def test_errors_say_what_to_do():
    with pytest.raises(BudgetError, match="at least 0"):
        ClippedSparse(-1.0)
    with pytest.raises(ModelError, match="no linear layers"):
        sparse_init(nn.ReLU(), ClippedSparse())
