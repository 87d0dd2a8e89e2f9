from __future__ import annotations

import pytest
import torch

from sparseworks.core.stats import Gram, InputMoments, Stats


def build(rows: int, cols: int, *, tokens: int = 2048, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Heavy-tailed weights, inputs with strong correlations and unequal channel scales; (weight, stats, inputs)."""
    g = torch.Generator().manual_seed(seed)
    rank = max(cols // 4, 1)
    mix = torch.randn(rank, cols, generator=g) / rank**0.5
    scale = torch.exp(0.7 * torch.randn(cols, generator=g))
    x = (torch.randn(tokens, rank, generator=g) @ mix + 0.3 * torch.randn(tokens, cols, generator=g)) * scale
    u = torch.rand(rows, cols, generator=g) - 0.5
    weight = (-u.sign() * torch.log1p(-2 * u.abs()) / cols**0.5).to(dtype)
    stats = Stats.collecting({Gram, InputMoments}, (rows, cols))
    stats.feed("input", x)
    return weight, stats, x


@pytest.fixture
def layer():
    return build
