"""Metrics beside their closed forms."""

from __future__ import annotations

import pytest
import torch

from sparseworks.codes.autoencoders import METRICS
from sparseworks.codes.autoencoders.metrics import FVU, Histogram, atom_recovery, match_atoms, support_f1
from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError, ShapeError

NONE = Codes(torch.zeros(20_000, 0), torch.zeros(20_000, 0, dtype=torch.long), 4)


def test_fvu_of_gaussian_data_that_is_shrunk_is_the_square_of_what_is_missing():
    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0)) + 100
    metric, middle = FVU(), x.mean(0)
    metric.add(x, middle + 0.7 * (x - middle), NONE)
    assert float(metric.value()) == pytest.approx(0.09, rel=1e-4)
    mean = FVU()
    mean.add(x, middle.expand_as(x), NONE)
    assert float(mean.value()) == pytest.approx(1, rel=1e-6)
    noisy = FVU()
    noisy.add(x, x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), NONE)
    assert float(noisy.value()) == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("parts", [1, 7])
def test_a_shrunk_reconstruction_keeps_its_direction_and_tells_by_how_much_it_is_too_short(parts):
    x = torch.randn(210, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(210, 4, generator=torch.Generator().manual_seed(1))
    noise = noise - (noise * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x  # across
    rebuilt, codes = 0.6 * x + noise, Codes(x, torch.arange(4).expand(210, 4), 4)
    found = {}
    for name in ("cosine", "norm_ratio", "reconstruction_bias", "l1"):
        metric = METRICS.get(name)()
        for a, b, v in zip(x.chunk(parts), rebuilt.chunk(parts), codes.values.chunk(parts), strict=True):
            metric.add(a, b, Codes(v, torch.arange(4).expand(len(v), 4), 4))
        found[name] = float(metric.value())
    length = rebuilt.norm(dim=1) / x.norm(dim=1)
    assert found["cosine"] == pytest.approx(float((0.6 / length).mean()), rel=1e-5)
    assert found["norm_ratio"] == pytest.approx(float(length.mean()), rel=1e-5)
    along = float(rebuilt.square().sum() / (0.6 * x.square().sum()))
    assert found["reconstruction_bias"] == pytest.approx(along, rel=1e-5)
    assert found["l1"] == pytest.approx(float(x.abs().sum(1).mean()), rel=1e-5)
    shrunk = METRICS.get("reconstruction_bias")()
    shrunk.add(x, 0.8 * x, codes)
    assert float(shrunk.value()) == pytest.approx(0.8)
    with pytest.raises(CalibrationError):
        METRICS.get("cosine")().value()


def test_histogram_puts_each_latent_into_its_decade():
    indices = torch.zeros(1000, 2, dtype=torch.long)
    indices[:, 1] = 1
    values = torch.ones(1000, 2)
    values[50:, 1] = 0  # latent 1 on 5 % of the tokens: (-2, -1]
    metric = Histogram()
    metric.add(torch.zeros(1000, 1), torch.zeros(1000, 1), Codes(values, indices, 3))
    assert metric.value().tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_recovery_of_turned_atoms_is_one_less_the_cosine():
    true = torch.eye(3)
    angle = torch.tensor(0.3)
    found = torch.stack([torch.stack([angle.cos(), angle.sin(), angle * 0]), -5 * true[1], true[0]])
    assert torch.allclose(atom_recovery(found, true), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), atol=1e-6)
    matched = atom_recovery(found, true, matched=True)
    assert float(matched.sum()) == pytest.approx(1.0, abs=1e-6)
    assert sorted(match_atoms(found, true, matched=True)[0].tolist()) == [0, 1, 2]
    with pytest.raises(ShapeError):
        atom_recovery(found[:2], true, matched=True)


def test_f1_of_supports():
    true = Codes(torch.ones(4, 1), torch.tensor([[0], [0], [1], [1]]), 2)
    found = Codes(torch.ones(4, 1), torch.tensor([[2], [0], [1], [1]]), 3)
    assert support_f1(found, true).tolist() == pytest.approx([2 / 3, 1.0])
    assert support_f1(found, true, torch.tensor([1, 0])).tolist() == [0.0, 0.0]
    assert support_f1(true, true).tolist() == [1.0, 1.0]
    with pytest.raises(ShapeError):
        support_f1(found, Codes(torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.long), 2))
