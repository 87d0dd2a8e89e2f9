"""What soft ways to zero promise, on digits: each effect against the method's own baseline."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.core.schedule import Annealing, Constant
from sparseworks.weights.train import GrowingL2, Penalised, SoftShrink

STEPS = 300


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    images, labels = torch.tensor(found.images, dtype=torch.float32).flatten(1) / 16 - 0.3, torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


def loss_after(digits, method: Method, seed: int = 0) -> float:
    """Held-out loss after training from scratch."""
    images, labels = digits
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    run = sw.Sparsifier(model, method, optimizer, steps=STEPS)
    for i in range(STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * min((i + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * i / STEPS))
        at = torch.randint(0, 1200, (64,), generator=torch.Generator().manual_seed(seed * 100_000 + i))
        optimizer.zero_grad()
        F.cross_entropy(model(images[at]), labels[at]).backward()
        optimizer.step()
        run.step()
    run.finish()
    with torch.no_grad():
        return float(F.cross_entropy(model(images[1200:]), labels[1200:]))


@pytest.fixture(scope="module")
def shrunk(digits):
    """Factor of the shrinkage -> held-out loss: soft, hard thresholds, one cut."""
    return {
        f: loss_after(digits, sw.method("iss_p", density=0.03, train=SoftShrink(factor=f))) for f in (0.95, 0.0, 1.0)
    }


def test_soft_shrinkage_is_better_than_hard_thresholds_and_than_one_cut(shrunk):
    assert shrunk[0.95] < shrunk[0.0] and shrunk[0.95] < shrunk[1.0]


def test_a_growing_penalty_is_better_than_hard_thresholds_and_than_one_cut(digits, shrunk):
    """The step is scaled to a run of 300. Five seeds: 1.71 to 1.91, against 2.11 to 2.20 and 2.23 to 2.26."""
    penalised = loss_after(digits, sw.method("iss_l2", density=0.03, train=GrowingL2(step=5e-3, every=1)))
    assert penalised < shrunk[0.0] - 0.2 and penalised < shrunk[1.0] - 0.2


def test_annealed_gradients_of_dropped_weights_are_better_than_none(digits):
    """With batch normalisation and SGD, 5 % and five seeds: 0.45 (0.38 to 0.53) against 1.20 (1.08 to 1.46)."""
    annealed, none = (
        loss_after(digits, sw.method("autosparse_topk", density=0.03, schedule=schedule))
        for schedule in (Annealing(), Constant(0.0))
    )
    assert annealed < 0.5 * none


def losses_around_the_cut(digits, penalty: Penalised, seed: int = 0) -> tuple[float, float]:
    """Held-out loss before and after 99 % of the weights are dropped, 100 steps after the start of training and 400 of penalty."""
    images, labels = digits
    images = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = sw.Sparsifier(model, sw.method("hyper_sparse", density=0.01, train=penalty), optimizer, steps=500)
    for i in range(500):
        at = torch.randint(0, 1200, (64,), generator=torch.Generator().manual_seed(seed * 100_000 + i))
        optimizer.zero_grad()
        F.cross_entropy(model(images[at]), labels[at]).backward()
        optimizer.step()
        run.step()

    @torch.no_grad()
    def loss() -> float:
        return float(F.cross_entropy(model(images[1200:]), labels[1200:]))

    before = loss()
    run.finish()
    return before, loss()


def test_at_99_percent_the_hyper_sparse_penalty_leaves_less_to_lose_than_l1_and_l2(digits):
    """Rates are the best of 1e-4 ... 5e-2 for each kind, by the loss after the cut; growth as in the paper."""
    found = {
        kind: losses_around_the_cut(digits, Penalised(kind=kind, rate=rate, epoch=10, warmup=10))
        for kind, rate in (("hyper_sparse", 5e-3), ("l1", 1e-3), ("l2", 1e-2))
    }
    before, after = found["hyper_sparse"]
    assert after < before + 0.05
    assert after < found["l1"][1] - 0.15 and after < found["l2"][1] - 1.0
