"""Mask churn and the share of weights ever kept."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.support import Support
from sparseworks.weights.train import Explored, churn


def of(*kept):
    return {"a": Support.from_mask(torch.tensor([kept], dtype=torch.bool))}


def test_churn_counts_what_differs():
    assert churn(of(1, 1, 0, 0), of(1, 0, 1, 0)) == 2 == churn(of(1, 0, 1, 0), of(1, 1, 0, 0))
    assert churn(of(1, 0), of(1, 0)) == 0
    with pytest.raises(KeyError):
        churn(of(1), {"b": of(1)["a"]})


def test_explored_is_the_union():
    explored = Explored(of(1, 0, 0, 0))
    assert explored.share == 0.25
    explored.add(of(0, 1, 0, 0))
    explored.add(of(1, 0, 0, 0))
    assert explored.share == 0.5
