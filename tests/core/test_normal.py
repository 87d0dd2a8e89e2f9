"""The statistical threshold: how many entries it keeps, of all and of some."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError
from sparseworks.core.normal import normal_threshold


def test_count_is_right_for_normal_entries_and_low_for_heavy_tails():
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(500, 2048, generator=g)
    laplace = normal.sign() * -torch.rand(500, 2048, generator=g).log()
    mean = lambda x: float((x > normal_threshold(x, 163)).sum(dim=1).float().mean())  # noqa: E731
    assert mean(normal) == pytest.approx(163, abs=2) and mean(3 * normal + 7) == pytest.approx(163, abs=2)
    assert mean(laplace) == pytest.approx(140, abs=3)
    assert float((normal > normal_threshold(normal, 163)).sum(dim=1).float().std()) < 12


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
def test_it_keeps_about_as_many_of_normal_sizes(share):
    x = torch.randn(4, 20000, generator=torch.Generator().manual_seed(0)) + 10
    kept = (x > normal_threshold(x, round(share * 20000))).float().mean(dim=1)
    assert bool(((kept - share).abs() < 0.015).all())


def test_of_some_entries_it_is_that_of_a_row_of_them_alone():
    g = torch.Generator().manual_seed(1)
    x, among = torch.randn(5, 64, generator=g), torch.rand(5, 64, generator=g) < 0.6
    found = normal_threshold(x.where(among, 1e6), 7, among)
    for row, some, one in zip(x, among, found, strict=True):
        torch.testing.assert_close(one, normal_threshold(row[some], 7))


def test_the_ends():
    x = torch.randn(3, 16)
    assert bool((x > normal_threshold(x, 16)).all()) and bool((x > normal_threshold(x, 20)).all())
    torch.testing.assert_close(normal_threshold(torch.ones(4), 1), torch.ones(1), atol=1e-5, rtol=0)
    with pytest.raises(BudgetError, match="more than 0"):
        normal_threshold(x, 0)
