"""Which cell is found depends on whether the network is judged dense or masked: few noisy digits, 5 % of the weights."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.weights.search import Cell, derive, search_sparse

WIDTH, SKIP = 32, ("stem", "last")
STEPS, IMAGES = (40, 20, 60), 200


def layers(*widths):
    """From WIDTH through others back to WIDTH, each normalised, the first after a ReLU."""
    pairs = list(itertools.pairwise([WIDTH, *widths, WIDTH]))
    return lambda: nn.Sequential(
        *(part for a, b in pairs for part in (nn.ReLU(), nn.Linear(a, b, bias=False), nn.BatchNorm1d(b)))
    )


SPACE = {"skip": nn.Identity, "narrow": layers(4), "single": layers(), "wide": layers(128)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.cell = nn.Linear(64, WIDTH), Cell(SPACE, nodes=3)
        self.norm, self.last = nn.BatchNorm1d(2 * WIDTH), nn.Linear(2 * WIDTH, 10)

    def forward(self, x):
        return self.last(F.relu(self.norm(self.cell(self.stem(x)))))


class Digits:
    """Digits in noise: some to train weights in a search, 500 to choose, 1000 to train what was chosen, the rest to test."""

    def __init__(self):
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        x = torch.tensor(images, dtype=torch.float32)[order] / 16
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        self.x, self.y = x - x[:1000].mean(dim=0) + 0.3 * noise, torch.tensor(labels)[order]

    def batches(self, first, last, size):
        return list(zip(self.x[first:last].split(size), self.y[first:last].split(size), strict=True))

    def accuracy(self, model):
        with torch.no_grad():
            return 100 * float((model.eval()(self.x[1000:]).argmax(1) == self.y[1000:]).float().mean())


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def fast(parameters):
    return torch.optim.Adam(parameters, lr=1e-2, fused=True)


def architecture(parameters):
    return torch.optim.Adam(parameters, lr=0.05, betas=(0.5, 0.999), weight_decay=1e-3, fused=True)


METHOD = sw.method("dass", density=0.05)


@pytest.fixture(scope="module")
def found():
    """Seed -> accuracy after equal sparse training of the cell found (masked, dense)."""
    digits, threads = Digits(), torch.get_num_threads()
    torch.set_num_threads(1)
    results = [
        tuple(sparse_accuracy(digits, genotypes, seed) for genotypes in searched(digits, seed)) for seed in range(3)
    ]
    torch.set_num_threads(threads)
    return results


def searched(digits, seed):
    """What the masked and the dense search choose, from the same dense training."""
    torch.manual_seed(seed)
    net, options = Net(), {"optimizer": fast, "architecture": architecture, "skip": SKIP, "seed": seed}
    data = digits.batches(0, IMAGES, 50), digits.batches(500, 1000, 250)
    search_sparse(net, None, *data, loss, steps=(STEPS[0], 0, 0), **options)
    for method in (METHOD, None):
        yield search_sparse(copy.deepcopy(net), method, *data, loss, steps=(0, *STEPS[1:]), **options).genotypes


def sparse_accuracy(digits, genotypes, seed):
    torch.manual_seed(100 + seed)
    net = derive(Net(), genotypes)
    search_sparse(
        net, METHOD, digits.batches(0, 1000, 50), (), loss, steps=(40, 20, 60), optimizer=fast, skip=SKIP, seed=seed
    )
    return digits.accuracy(net)


def test_the_cell_found_masked_is_better_when_sparse_than_the_cell_found_dense(found):
    masked, dense = ([pair[k] for pair in found] for k in (0, 1))
    assert sum(masked) / 3 > sum(dense) / 3 + 5, found
    assert all(m > d - 2 for m, d in found), found
