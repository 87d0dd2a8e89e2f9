"""Convolutions of one position as sparse products over channels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparseworks.core.errors import ShapeError
from sparseworks.exec import SparseConv1x1

pytestmark = pytest.mark.usefixtures("toys")


@pytest.mark.parametrize(
    ("conv", "x"),
    [
        (nn.Conv1d(6, 4, 1), torch.randn(2, 6, 7)),
        (nn.Conv1d(6, 4, 1, stride=2), torch.randn(6, 7)),
        (nn.Conv2d(6, 4, 1, bias=False), torch.randn(2, 6, 5, 4)),
        (nn.Conv2d(6, 4, 1, stride=(2, 3)), torch.randn(2, 6, 5, 7)),
        (nn.Conv2d(6, 4, 1, stride=2), torch.randn(6, 5, 4)),
        (nn.Conv2d(6, 4, 1, padding="valid"), torch.randn(1, 6, 1, 1)),
    ],
)
def test_convolution(conv, x, random_support):
    support = random_support(4, 6, 0.5)
    sparse = SparseConv1x1.from_conv(conv, support, kernel="toy-any")
    masked = copy.deepcopy(conv)
    with torch.no_grad():
        masked.weight.flatten(1).mul_(support.mask())
    torch.testing.assert_close(sparse(x), masked(x))
    assert sparse.support() == support and torch.equal(sparse.dense_weight(), masked.weight.detach().flatten(1))
    assert "stride" in repr(sparse)


def test_convolution_planned(clock, random_support):
    clock.us |= {"toy-any": 20.0}
    sparse = SparseConv1x1.from_conv(nn.Conv2d(6, 4, 1), random_support(4, 6, 0.5), batch=9)
    assert sparse.linear.rungs == [(0, "toy-any")]


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 1, padding=1), nn.Conv2d(6, 6, 1, groups=2), nn.Conv1d(6, 4, 2)]
)
def test_other_convolutions_are_refused(conv, random_support):
    with pytest.raises(ShapeError, match="leave it dense"):
        SparseConv1x1.from_conv(conv, random_support(4, 6, 0.5), kernel="toy-any")
