"""k-means equals the same with a matrix of members; clusters of equal size find groups that are there, and lie closer than at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError
from sparseworks.solve import clusters as module
from sparseworks.solve.clusters import balanced_kmeans, kmeans, nearest, summed


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), tokens=st.integers(1, 60), clusters=st.integers(1, 12), heads=st.sampled_from([(), (2,), (2, 3)]))  # fmt: skip
def test_sums_by_index_are_those_of_a_matrix_of_members(seed, tokens, clusters, heads):
    """Whole numbers, whose sums are exact in any order: the same labels and centroids, bit by bit."""
    x = torch.randint(-4, 5, (*heads, tokens, 3), generator=torch.Generator().manual_seed(seed)).float()
    label, centres = kmeans(x, clusters, 0)
    for _ in range(4):
        member = torch.nn.functional.one_hot(label, centres.shape[-2]).to(x.dtype)
        count = member.sum(-2).unsqueeze(-1)
        assert torch.equal(summed(x, label, centres.shape[-2]), member.mT @ x)
        centres = torch.where(count > 0, member.mT @ x / count.clamp(min=1), centres)
        label = nearest(x, centres)
    found = kmeans(x, clusters, 4)
    assert torch.equal(found[0], label) and torch.equal(found[1], centres)


def test_tokens_are_labelled_some_at_a_time_and_counted_beyond_what_half_precision_can(monkeypatch):
    x = torch.randint(-4, 5, (2, 50, 3), generator=torch.Generator().manual_seed(0)).float()
    centres = x[:, :7].clone()
    at_once = nearest(x, centres)
    monkeypatch.setattr(module, "_PRODUCTS", 40)
    assert torch.equal(nearest(x, centres), at_once)
    many = torch.ones(5000, 1, dtype=torch.bfloat16)
    assert float(summed(many, torch.zeros(5000, dtype=torch.long), 1)) == float(torch.tensor(5000.0).bfloat16())


def test_no_clusters_are_refused():
    with pytest.raises(BudgetError, match="At least one"):
        kmeans(torch.ones(3, 2), 0)


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
