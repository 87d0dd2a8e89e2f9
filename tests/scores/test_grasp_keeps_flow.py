"""GraSP's sign: what it keeps carries the gradient flow, what it drops hinders it."""

from __future__ import annotations

import torch

from sparseworks.core.stats import HessianGradient, Stats
from sparseworks.scores import GraSP


def test_removing_the_lowest_score_raises_the_gradient_norm_most():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=g, dtype=torch.float64)
    h, w = root @ root.T / 6, 0.01 * torch.randn(6, generator=g, dtype=torch.float64)
    at = torch.randn(6, generator=g, dtype=torch.float64)
    gradient = lambda v: h @ (v - at)  # noqa: E731  quadratic loss with Hessian h
    stats = Stats.collecting({HessianGradient}, (1, 6))
    stats.feed("hessian_gradient", (h @ gradient(w)).unsqueeze(0))
    score = GraSP()(w.unsqueeze(0), stats)[0]
    without = [w * (torch.arange(6) != i) for i in range(6)]
    flow = torch.stack([gradient(v).square().sum() for v in without])
    assert torch.equal(score.argsort(), flow.argsort(descending=True))
