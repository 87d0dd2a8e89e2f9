"""Selection behind an upper bound: equal to the exact one, fewer groups opened, and the certificate says what is proven."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError, NonFiniteError
from sparseworks.core.select import select_bounded

quick = settings(deadline=None, max_examples=50)


def opener(items: torch.Tensor):
    """Group g holds items g*n .. g*n+n-1."""
    n = items.shape[1]
    return lambda g: (torch.arange(g * n, g * n + n), items[g])


def best(items: torch.Tensor, keep: int) -> list[int]:
    flat = items.reshape(-1).tolist()
    return sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:keep]


@quick
@given(
    values=st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=8),
    loose=st.integers(0, 2),
    keep=st.integers(0, 30),
)
def test_exact_slack_equals_the_exact_selection_ties_included(values, loose, keep):
    items = torch.tensor(values, dtype=torch.float32)
    ids, scores, certificate = select_bounded(items.max(1).values + loose, opener(items), keep)
    assert ids.tolist() == best(items, keep)
    assert scores.tolist() == [items.reshape(-1).tolist()[i] for i in ids.tolist()]
    assert certificate.exact and certificate.opened <= certificate.groups == len(values)


@quick
@given(seed=st.integers(0, 500), slack=st.floats(0.1, 1.0), keep=st.integers(1, 10))
def test_a_certificate_of_exactness_is_never_wrong(seed, slack, keep):
    items = torch.rand(10, 4, generator=torch.Generator().manual_seed(seed))
    ids, _, certificate = select_bounded(items.max(1).values * 1.1, opener(items), keep, slack=slack)
    if certificate.exact:
        assert ids.tolist() == best(items, keep)


def test_groups_that_cannot_matter_stay_closed():
    items = torch.tensor([[9.0, 8.0], [1.0, 0.0], [7.0, 2.0]])
    opened = []

    def exact(g):
        opened.append(g)
        return opener(items)(g)

    ids, _, certificate = select_bounded(items.max(1).values, exact, 2)
    assert ids.tolist() == [0, 1] and opened == [0]
    assert certificate == type(certificate)(opened=1, groups=3, threshold=8.0, exact=True)


def test_slack_opens_fewer_and_does_not_claim_what_it_skipped():
    items = torch.tensor([[4.0, 1.0], [5.0, 3.9], [3.95, 0.0]])
    full = select_bounded(torch.tensor([6.0, 6.0, 6.0]), opener(items), 2)[2]
    fast = select_bounded(torch.tensor([6.0, 6.0, 6.0]), opener(items), 2, slack=0.6)[2]
    assert fast.opened < full.opened == 3
    assert full.exact and not fast.exact


def test_a_slack_result_that_happens_to_be_proven_says_so():
    items = torch.tensor([[4.0, 3.0], [1.0, 0.0]])
    assert select_bounded(items.max(1).values, opener(items), 2, slack=0.5)[2].exact


def test_a_broken_bound_costs_the_certificate():
    items = torch.tensor([[4.0, 3.0], [5.0, 0.0]])
    assert not select_bounded(torch.tensor([3.0, 6.0]), opener(items), 3)[2].exact


def test_precision_of_exact_scores_is_kept():
    items = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    ids, values, _ = select_bounded(torch.tensor([2.0]), opener(items), 1)
    assert ids.tolist() == [1] and values.dtype == torch.float64


def test_fewer_items_than_asked_and_none_at_all():
    items = torch.tensor([[1.0, 2.0]])
    ids, _, certificate = select_bounded(torch.tensor([2.0]), opener(items), 5)
    assert ids.tolist() == [1, 0] and certificate.exact and certificate.threshold == float("-inf")
    ids, _, certificate = select_bounded(torch.zeros(0), opener(items), 5)
    assert ids.numel() == 0 and certificate.exact and certificate.opened == 0


def test_refusals():
    items = torch.zeros(1, 2)
    for slack, keep in ((0.0, 1), (1.5, 1), (1.0, -1)):
        with pytest.raises(BudgetError, match="slack"):
            select_bounded(torch.zeros(1), opener(items), keep, slack=slack)
    with pytest.raises(NonFiniteError, match="Bounds"):
        select_bounded(torch.tensor([float("nan")]), opener(items), 1)
    with pytest.raises(NonFiniteError, match="group 0"):
        select_bounded(torch.zeros(1), opener(items * float("nan")), 1)
