"""Layers with activations as they occur: real ones of the shipped decoder, and made-up ones with correlated features."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sparseworks.core.stats import Gram, InputMoments, Stats
from sparseworks.stream import gather, sites
from sparseworks.weights.matrix import relative_error


@dataclass
class Layer:
    """A weight and the statistics of its inputs."""

    weight: Tensor
    stats: Stats

    def error(self, other: Tensor) -> float:
        """Relative squared output error."""
        return relative_error(self.weight, other.detach(), self.stats)


@pytest.fixture(scope="session")
def layer(tiny_lm) -> Layer:
    """A projection of 256 x 256 from the middle of the shipped decoder."""
    (site,) = (s for s in sites(tiny_lm.dense) if s.name == "model.layers.2.self_attn.q_proj")
    stats = gather(tiny_lm.dense, [site], frozenset({Gram, InputMoments}), tiny_lm.data)
    return Layer(site.read(tiny_lm.dense).clone(), stats[site.name])


def correlated(size: int = 64, tokens: int = 512, seed: int = 0) -> Layer:
    """Inputs with a few strong directions and channels of unequal scale."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, size // 8, generator=g) @ torch.randn(size // 8, size, generator=g)
    x = (x + torch.randn(tokens, size, generator=g) / 2) * (3 * torch.rand(size, generator=g))
    stats = Stats.collecting({Gram, InputMoments}, (size, size))
    stats.feed("input", x)
    return Layer(torch.randn(size, size, generator=g), stats)


@pytest.fixture
def made_up() -> Layer:
    """One of 64 x 64."""
    return correlated()
