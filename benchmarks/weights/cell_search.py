"""A small search space on CIFAR-10, and a search in it whose objective is the masked network or the dense one.

A stem, a cell of four nodes at 16x16, and a head. Candidates of an edge: nothing but the input, a 3x3 convolution, a depthwise
separable one, a 1x1 convolution, an average of 3x3. What was found is drawn anew and trained sparse, the same way for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from cifar import Images
from torch import Tensor, nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.weights.search import Cell, Genotype, derive, search_sparse

WIDTH = 24
BATCH = 96


class Found(NamedTuple):
    """The network after its training, what is kept of it, and the operations of its cell."""

    model: nn.Module
    supports: dict[str, sw.Support]
    genotype: Genotype


def _conv(size: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, size, padding=size // 2, groups=groups, bias=False)


SPACE = {
    "skip": nn.Identity,
    "conv": lambda: nn.Sequential(nn.ReLU(), _conv(3), nn.BatchNorm2d(WIDTH)),
    "separable": lambda: nn.Sequential(nn.ReLU(), _conv(3, WIDTH), _conv(1), nn.BatchNorm2d(WIDTH)),
    "point": lambda: nn.Sequential(nn.ReLU(), _conv(1), nn.BatchNorm2d(WIDTH)),
    "pool": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}


class Network(nn.Module):
    """Stem, cell, head."""

    def __init__(self, nodes: int = 4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH))
        self.cell = Cell(SPACE, nodes)
        self.head = nn.Linear(WIDTH * (nodes - 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.cell(self.stem(x))).mean((2, 3)))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of a batch, all of it flipped or not."""
    x, y = batch
    return F.cross_entropy(model(x.flip(3) if float(torch.rand(())) < 0.5 else x), y)


def found(data: Images, masked: bool, density: float, seed: int, steps: tuple[int, int, int]) -> Found:
    """Search on three quarters of the images and judge on the others; train on all of them what was chosen, at `density`."""
    torch.manual_seed(seed)
    method, skip = sw.method("dass", density=density), ["stem*", "head"]
    net = Network().to(data.x.device)
    size = min(BATCH, len(data.x) // 4)
    batches = list(zip(data.x.split(size), data.y.split(size), strict=True))
    cut = 3 * len(batches) // 4
    options = {"optimizer": _weights, "skip": skip, "seed": seed}
    searched = search_sparse(
        net, method if masked else None, batches[:cut], batches[cut:], loss, steps=steps, architecture=_alphas, **options
    )  # fmt: skip
    model = derive(net, searched.genotypes)
    trained = search_sparse(model, method, batches, (), loss, steps=steps, **options)
    return Found(model, trained.supports, searched.genotypes["cell"])


def _weights(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3)


def _alphas(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2, betas=(0.5, 0.999), weight_decay=1e-3)
