from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError, CalibrationError, ShapeError
from sparseworks.core.histogram import BINS, InputHistogram, OutputHistogram
from sparseworks.testing import check_stat


def seen(*batches, factor=None):
    stat = InputHistogram.of(factor)(3, batches[0].shape[-1])
    for x in batches:
        stat.update(x)
    return stat


@pytest.mark.parametrize("kind", [InputHistogram, OutputHistogram])
def test_conformance(kind):
    check_stat(kind)


def test_merging_equals_concatenation_bin_by_bin():
    a, b = torch.randn(50, 8), 1e4 * torch.randn(7, 8)
    one, other = seen(a), seen(b)
    one.merge(other)
    assert torch.equal(one.counts, seen(torch.cat([a, b])).counts) and one.counts.shape == (BINS,)
    assert one.counts.sum() == 57 * 8


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_threshold_is_the_quantile(density, scale):
    x = scale * torch.distributions.Laplace(0.0, 1.0).sample((2000, 16))
    stat = seen(x)
    kept = float((x.abs() > stat.threshold(density)).float().mean())
    assert kept == pytest.approx(density, abs=2e-3)
    assert stat.density(stat.threshold(density)) == pytest.approx(density, abs=1e-6)


def test_factor_weighs_columns():
    x, factor = torch.randn(500, 8), torch.linspace(0.1, 5, 8)
    stat = seen(x, factor=factor)
    assert torch.equal(stat.counts, seen(x * factor).counts)
    with pytest.raises(ShapeError, match="does not fit"):
        InputHistogram.of(torch.ones(5))(3, 8).update(x)


def test_ends():
    x = torch.cat([torch.zeros(30, 4), torch.ones(10, 4)])
    stat = seen(x)
    assert stat.threshold(1.0) == 0.0 and stat.threshold(0.0) == float("inf")
    assert stat.threshold(0.5) == 0.0  # three quarters are zero: whatever is not stays
    assert 0.99 < stat.threshold(0.1) < 1.01
    assert stat.density(0.0) == 0.25 and stat.density(2.0) == 0.0 and stat.density(float("inf")) == 0.0
    with pytest.raises(BudgetError, match="density"):
        stat.threshold(1.5)
    with pytest.raises(CalibrationError):
        InputHistogram(3, 4).threshold(0.5)
