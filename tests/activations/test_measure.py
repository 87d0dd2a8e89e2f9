"""Nonzeros after nonlinearities: counts, and the two findings about lazy neurons."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from sparseworks.activations.measure import Nonzeros, measure_nonzeros
from sparseworks.activations.trained import Neurons, TopKNeurons
from sparseworks.core.errors import CalibrationError, ModelError
from sparseworks.evaluate import calibration_error


def test_counts_of_every_layer_over_all_batches():
    model = nn.Sequential(nn.Identity(), nn.ReLU(), Neurons(TopKNeurons(1))).train()
    found = measure_nonzeros(model, [torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([[-1.0, -1.0, -1.0]])])
    assert found == {"1": Nonzeros(2, 6, 2), "2": Nonzeros(1, 6, 2)}
    assert found["1"].share == pytest.approx(1 / 3) and found["1"].per_token == 1.0
    assert model.training and not model[1]._forward_hooks
    with pytest.raises(ModelError, match="none of the modules"):
        measure_nonzeros(nn.Linear(2, 2), [])
    with pytest.raises(CalibrationError, match="no batches"):
        measure_nonzeros(model, [])


def digits(standardise):
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels, dtype=torch.float32)[order], torch.tensor(labels)[order]
    return ((x - x.mean(dim=0)) / (x.std(dim=0) + 0.1) if standardise else x / 16), y


def train(act, width, x, y, steps, lr, seed=0, examples=1200):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, width), act, nn.Linear(width, 10))
    first = measure_nonzeros(model, [x[:1200]])["1"].share
    optimizer, g = torch.optim.Adam(model.parameters(), lr=lr), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(0, examples, (64,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()
    return model, first


def test_neurons_grow_lazy_and_wide_nets_more_so_even_on_random_labels():
    x, y = digits(standardise=True)
    random = torch.randint(0, 10, y.shape, generator=torch.Generator().manual_seed(1))
    after = {}
    for labels, name in ((y, "true"), (random, "random")):
        for width in (64, 768):
            model, first = train(nn.ReLU(), width, x, labels, steps=400, lr=1e-2)
            assert 0.47 < first < 0.53
            after[name, width] = [measure_nonzeros(model, [part])["1"].share for part in (x[:1200], x[1200:])]
    assert all(abs(seen - held) < 0.03 for seen, held in after.values())
    assert after["true", 768][0] < 0.47 and after["random", 768][0] < 0.32
    assert all(after[name, 768][0] < after[name, 64][0] - 0.03 for name in ("true", "random"))


def test_few_neurons_resist_wrong_labels():
    """40 % of the labels are drawn at random: accuracy on true labels, and calibration on labels as noisy as those of training."""
    x, y = digits(standardise=False)
    g = torch.Generator().manual_seed(2)
    noisy = torch.where(torch.rand(len(y), generator=g) < 0.4, torch.randint(0, 10, y.shape, generator=g), y)
    found = {}
    for keep in (None, 4):
        for seed in range(2):
            act = nn.ReLU() if keep is None else Neurons(TopKNeurons(keep))
            model, _ = train(act, 256, x, noisy, 400, 1e-2, seed, examples=600)
            with torch.no_grad():
                logits = model(x[1200:])
            right = (logits.argmax(dim=1) == y[1200:]).float().mean()
            found[keep, seed] = float(right), calibration_error(logits, noisy[1200:])
    for seed in range(2):
        (dense, dense_error), (few, few_error) = found[None, seed], found[4, seed]
        assert few > dense + 0.06 and few_error < 0.6 * dense_error, found
