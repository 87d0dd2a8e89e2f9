"""Drifting traces and occupancy grids."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError
from sparseworks.evaluate.sequences import blend, drift, falling, occupancy, qkv


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_a_trace_forgets_at_the_stated_rate_and_keeps_its_size():
    trace = list(drift(qkv(256, heads=4), 6, 0.3))
    assert len(trace) == 6 and torch.equal(trace[0].q, qkv(256, heads=4).q)
    for t, x in enumerate(trace):
        assert correlation(x.k, trace[0].k) == pytest.approx((1 - 0.3**2) ** (t / 2), abs=0.02)
        assert x.v.std().item() == pytest.approx(trace[0].v.std().item(), rel=0.03)
    assert all(torch.equal(a.q, b.q) for a, b in zip(trace, drift(qkv(256, heads=4), 6, 0.3), strict=True))


def test_drift_may_fall():
    eps = falling(0.5, 0.05, 10)
    assert eps(1) == pytest.approx(0.5) and eps(9) == pytest.approx(0.05)
    trace = list(drift(qkv(256, heads=4), 10, eps))
    first, last = correlation(trace[0].q, trace[1].q), correlation(trace[8].q, trace[9].q)
    assert first == pytest.approx(0.75**0.5, abs=0.02) and last > 0.99
    with pytest.raises(BudgetError):
        list(drift(qkv(16), 2, 1.5))


def test_a_blend_stays_smooth_where_white_drift_does_not():
    def smooth(x):
        return float(torch.cosine_similarity(x.k[..., 1:, :], x.k[..., :-1, :], dim=-1).mean())

    *_, white = drift(qkv(256), 8, 0.5)
    *_, blended = blend(lambda t: qkv(256, seed=t), 8, 0.5)
    assert smooth(white) < 0.4 and smooth(blended) > 0.9


def test_occupancy_is_exact_and_clumps_touch():
    for shape in ((32, 32), (12, 12, 12)):
        loose, clumped = occupancy(shape, 0.1, batch=3), occupancy(shape, 0.1, batch=3, clumps=1.5)
        cells = loose[0].numel()
        assert loose.flatten(1).sum(1).tolist() == clumped.flatten(1).sum(1).tolist() == [round(0.1 * cells)] * 3

        def touching(grid):
            return float((grid[:, 1:] & grid[:, :-1]).float().sum() / grid.sum())

        assert touching(clumped) > 2 * touching(loose)
    assert not torch.equal(occupancy((8, 8), seed=0), occupancy((8, 8), seed=1))
    with pytest.raises(BudgetError):
        occupancy((4, 4), 0.0)
