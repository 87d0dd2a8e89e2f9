"""Digits, a small network, and a training that knows nothing of sparsity."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Digits:
    """Noisy 8x8 digits, and how a network is trained on them."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def net(self, seed: int = 0, width: int = 64, norm: bool = False) -> nn.Sequential:
        torch.manual_seed(seed)
        parts = [nn.Linear(64, width), nn.BatchNorm1d(width) if norm else nn.Identity(), nn.ReLU()]
        return nn.Sequential(*parts, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    def train(self, steps: int, lr: float = 0.1, batch: int = 32, decay=lambda t: 1 - t):
        def run(model, lap):
            optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
            generator = torch.Generator().manual_seed(lap.seed)
            model.train()
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = lr * decay(step / steps)
                i = torch.randint(0, len(self.x), (batch,), generator=generator)
                optimizer.zero_grad()
                cross_entropy(model(self.x[i]), self.y[i]).backward()
                optimizer.step()

        return run

    @torch.no_grad()
    def accuracy(self, model) -> float:
        model.eval()
        return 100 * float((model(self.x_test).argmax(1) == self.y_test).float().mean())


@pytest.fixture(scope="session")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    data = load_digits()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    x = x + 0.35 * torch.randn(x.shape, generator=generator)
    order = torch.randperm(len(x), generator=generator)
    a, b = order[:600], order[600:]
    return Digits(x[a], y[a], x[b], y[b])
