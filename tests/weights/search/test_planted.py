"""A task whose best operation is known: a full matrix when dense, a diagonal one when 5 % of a matrix is all there is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.weights.search import Cell, derive, search_sparse

WIDTH = 16
METHOD = sw.method("dass", density=0.05)


class Scale(nn.Module):
    """One factor a channel: no matrix, so nothing to mask."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(WIDTH))

    def reset_parameters(self):
        nn.init.ones_(self.factor)

    def forward(self, x):
        return self.factor * x


SPACE = {"scale": Scale, "matrix": lambda: nn.Linear(WIDTH, WIDTH)}


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def task(seed):
    """y = R x + d x with a rotation R: 13 entries of R explain less than the 16 of the diagonal d."""
    g = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=g)).Q
    diagonal = 1 + torch.rand(WIDTH, generator=g)
    x = torch.randn(960, WIDTH, generator=g)
    return list(zip(x.split(64), (x @ rotation.T + diagonal * x).split(64), strict=True))


def sgd(rate):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def found(seed, method):
    """The operation that is chosen, and the error of the derived network after sparse training."""
    data = task(seed)
    torch.manual_seed(seed)
    net = nn.Sequential(Cell(SPACE, nodes=2))
    search = search_sparse(
        net,
        method,
        data[:6],
        data[6:10],
        loss,
        steps=(10, 10, 30),
        optimizer=sgd(0.1),
        architecture=sgd(0.1),
        seed=seed,
    )
    derived = derive(net, search.genotypes)
    search_sparse(derived, METHOD, data[:10], (), loss, steps=(30, 30, 60), optimizer=sgd(0.1), seed=seed)
    with torch.no_grad():
        error = torch.stack([loss(derived.eval(), b) for b in data[10:]]).mean()
    return search.genotypes["0"][0].operation, float(error)


@pytest.mark.parametrize("seed", range(4))
def test_the_masked_search_finds_what_is_best_when_sparse_and_the_dense_one_does_not(seed):
    (masked, error), (dense, other) = found(seed, METHOD), found(seed, None)
    assert (masked, dense) == ("scale", "matrix")
    assert error < 0.85 * other
