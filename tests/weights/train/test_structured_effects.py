"""What structured methods promise, on digits: each effect against the method's own baseline, summed over seeds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.scores.groups import gamma
from sparseworks.stream import dependency_groups

STEPS = 150
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[order].unsqueeze(1) / 16 - 0.3
    return images, torch.tensor(found.target)[order]


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def residual(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    stem = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(
        *stem, *(Block(16) for _ in range(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


def straight(seed: int) -> nn.Module:
    torch.manual_seed(seed)

    def layer(into: int, out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    layers = [*layer(1, 16, 1), *layer(16, 32, 2), *layer(32, 32, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def held_out(model: nn.Module, digits) -> tuple[float, float]:
    """(loss, accuracy)."""
    images, labels = digits
    modes = model.training
    model.eval()
    with torch.no_grad():
        out = model(images[1200:])
    model.train(modes)
    return float(F.cross_entropy(out, labels[1200:])), float((out.argmax(1) == labels[1200:]).float().mean())


def train(
    model: nn.Module, digits, method=None, seed: int = 0, steps: int = STEPS, watch: Callable[..., bool] | None = None
) -> sw.Sparsifier | None:
    images, labels = digits
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    run = None
    if method is not None:
        units = dependency_groups(model, images[:2])
        run = sw.Sparsifier(model, method, optimizer, steps=steps, couplings=units)
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * min((i + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * i / steps))
        at = torch.randint(0, 1200, (64,), generator=torch.Generator().manual_seed(seed * 100_000 + i))
        optimizer.zero_grad()
        F.cross_entropy(model(images[at]), labels[at]).backward()
        optimizer.step()
        if run is not None:
            run.step()
        if watch is not None and watch(i, run):
            return run
    if run is not None:
        run.finish()
    return run


@pytest.fixture(scope="module")
def trained(digits) -> nn.Module:
    model = residual(0)
    train(model, digits)
    return model


def at_the_cut(start, digits, name: str, rate: float) -> tuple[float, float, float]:
    """Accuracy right before half the channels go and right after; |gamma| of the first to stay over that of the last to go."""
    method = sw.method(name, density=0.5)
    model, cut, found = copy.deepcopy(start), round(0.6 * STEPS), []

    def watch(i: int, run: sw.Sparsifier) -> bool:
        if i == cut - 2:
            ordered = gamma(run.units.sums()).sort().values
            gone = len(ordered) // 2
            found.extend([held_out(model, digits)[1], float(ordered[gone] / ordered[gone - 1])])
        return i == cut - 1

    train(model, digits, method.with_(train=replace(method.train, rate=rate)), seed=7, watch=watch)
    return found[0], held_out(model, digits)[1], found[1]


def test_penalties_on_the_channels_to_go_alone_leave_the_others_whole(trained, digits):
    """Mask sparsity against network slimming: accuracy before and after the cut, and nothing near the threshold."""
    before, after, gap = at_the_cut(trained, digits, "mask_sparsity", 0.08)
    before_all, after_all, gap_all = at_the_cut(trained, digits, "network_slimming", 0.08)
    assert before > before_all + 0.05 and after > after_all + 0.2
    assert gap > 5 and gap_all < 2
    _, weak, _ = at_the_cut(
        trained, digits, "network_slimming", 0.01
    )  # what slimming can bear does not prepare the cut
    assert after > weak + 0.3


def losses(digits, build, name: str, density: float, steps: int, seeds=SEEDS, **changes) -> list[float]:
    found = []
    for seed in seeds:
        method, model = sw.method(name, density=density), build(seed)
        train(model, digits, method.with_(train=replace(method.train, **changes)), seed=seed + 7, steps=steps)
        found.append(held_out(model, digits)[0])
    return found


def test_saliency_in_periods_is_better_than_one_cut_by_norm(digits):
    """HESSO against group magnitude at the start of its periods, the same training after it, 70 % of the channels gone."""
    mixed = losses(digits, residual, "hesso", 0.3, 200, cut=0.3)
    cut = losses(digits, residual, "group_magnitude", 0.3, 200, cut=0.1)
    assert all(a < b for a, b in zip(mixed, cut, strict=True)) and sum(mixed) < 0.9 * sum(cut)


@pytest.mark.parametrize(("density", "seeds", "ratio"), [(0.3, (0, 1), 0.6), (0.2, (0, 1, 2), 0.7)])
def test_trials_keep_layers_from_collapsing(digits, density, seeds, ratio):
    """HESSO-CRIC against HESSO on a net without shortcuts, 70 and 80 % of the channels gone."""
    tried, plain = (losses(digits, straight, name, density, 200, seeds=seeds) for name in ("hesso_cric", "hesso"))
    assert all(a < 0.8 * b for a, b in zip(tried, plain, strict=True)), (tried, plain)
    assert sum(tried) < ratio * sum(plain), (tried, plain)
