"""Streams of tasks from scikit-learn's digits."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor


class Part(NamedTuple):
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


@pytest.fixture(scope="session")
def digits() -> Part:
    """1200 images of 8 x 8 to train, 597 to test, centred and scaled."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order] / 8 - 0.6, torch.tensor(y)[order]
    return Part(x[:1200], y[:1200], x[1200:], y[1200:])


@pytest.fixture(scope="session")
def tasks(digits) -> list[Part]:
    """Five tasks of two classes, 0 and 1 first; labels as they are."""
    found = []
    for k in range(5):
        at, at_test = digits.y // 2 == k, digits.y_test // 2 == k
        found.append(Part(digits.x[at], digits.y[at], digits.x_test[at_test], digits.y_test[at_test]))
    return found
