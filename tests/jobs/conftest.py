from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self, width: int = 32, depth: int = 3):
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 16, 32, generator=generator) for _ in range(4)]


@pytest.fixture
def paced(monkeypatch) -> list[str]:
    """A made-up clock: a layer takes as long as its share of kept weights, whatever runs on the machine. Holds what was timed."""
    timed: list[str] = []

    def plan(model, supports, **options):
        timed.extend(supports)
        times = [{"us": 100.0 * s.density, "dense_us": 100.0} for s in supports.values()]
        return SimpleNamespace(rows=[SimpleNamespace(kernel="made-up", alternatives=(), **t) for t in times])

    def time_case(name, dense, fast, batch):
        kept = sum(int((w != 0).sum()) for w in fast.parameters() if w.dim() == 2)
        return {"ratio": sum(w.numel() for w in dense.parameters() if w.dim() == 2) / max(kept, 1)}

    search = importlib.import_module("sparseworks.jobs.search")
    monkeypatch.setattr(importlib.import_module("sparseworks.jobs.levels"), "plan", plan)
    monkeypatch.setattr(search, "time_case", time_case)
    monkeypatch.setattr(search, "plan", lambda model, supports, **options: SimpleNamespace(apply=lambda m: m))
    monkeypatch.setattr(search.measure, "time_call", lambda fn, **options: SimpleNamespace(us=700.0))
    return timed
