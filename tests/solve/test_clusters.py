"""Clusters of equal size: they find groups that are there, and lie closer than clusters at random."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError
from sparseworks.solve.clusters import balanced_kmeans


def test_groups_that_are_there_are_found_and_sizes_are_equal():
    g = torch.Generator().manual_seed(0)
    true = torch.arange(6).repeat_interleave(8)[torch.randperm(48, generator=g)]
    x = 5 * torch.randn(6, 10, generator=g)[true] + 0.1 * torch.randn(48, 10, generator=g)
    label = balanced_kmeans(x, 6)
    assert (label[:, None] == label).equal(true[:, None] == true)
    x = torch.randn(48, 4, generator=g)
    label = balanced_kmeans(x, 6)
    spread = lambda at: sum(float((x[at == c] - x[at == c].mean(0)).square().sum()) for c in range(6))  # noqa: E731
    assert label.bincount().tolist() == [8] * 6 and spread(label) < 0.7 * spread(true)


def test_sizes_must_come_out():
    with pytest.raises(BudgetError, match="equal size"):
        balanced_kmeans(torch.randn(10, 2), 3)
