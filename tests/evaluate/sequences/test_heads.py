"""Planted heads put their attention where they were told to."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.evaluate.sequences import (
    band_mask,
    column_mask,
    coordinates,
    frames,
    heavy_columns,
    mass_rows,
    periodic_mask,
    planted,
    spatial_mask,
    temporal_mask,
)

GRID = (8, 8, 8)


def test_masks_in_closed_form():
    assert int(band_mask(10, 1).sum()) == 28
    assert periodic_mask(9, 3, 0).nonzero().tolist() == [[i, j] for i in range(9) for j in range(i % 3, 9, 3)]
    assert torch.equal(periodic_mask(12, 4, 1)[0].nonzero().flatten(), torch.tensor([0, 1, 3, 4, 5, 7, 8, 9, 11]))
    assert int(column_mask(6, [1, 4]).sum()) == 12
    assert coordinates((2, 3, 4))[17].tolist() == [1, 1, 1]
    s, t = spatial_mask(GRID), temporal_mask(GRID)
    assert int(s.sum()) == 512 * 64 and int(t.sum()) == 512 * 8 and torch.equal(s & t, torch.eye(512).bool())
    assert torch.equal(temporal_mask(GRID), periodic_mask(512, 64, 0))


def test_every_planted_head_prefers_its_own_mask():
    masks = [
        band_mask(512, 24),
        periodic_mask(512, 48, 4),
        column_mask(512, heavy_columns(512, 24)),
        spatial_mask(GRID),
        temporal_mask(GRID),
    ]
    x = planted(masks)
    assert x.q.shape == (1, 5, 512, 64)
    for head, own in enumerate(masks):
        q, k = x.q[:, head : head + 1], x.k[:, head : head + 1]
        gain = [float(mass_rows(q, k, m).mean()) / float(m.float().mean()) for m in masks]
        assert max(range(5), key=gain.__getitem__) == head, gain
        assert float(mass_rows(q, k, own).mean()) > 0.6


def test_frames_are_smooth_over_space_and_time_and_not_across_rows_ends():
    x = frames(GRID, d=64, smooth=1.5, rho=0.9)
    k = x.k.view(8, 8, 8, 64)
    assert x.k.std().item() == pytest.approx(1.25, rel=0.15)

    def near(a, b):
        return float(torch.cosine_similarity(a, b, dim=-1).mean())

    assert near(k[:, 1:], k[:, :-1]) > 0.8 and near(k[:, :, 1:], k[:, :, :-1]) > 0.8
    assert near(k[1:], k[:-1]) == pytest.approx(0.9, abs=0.04)
    assert abs(near(k[:, :, 0], k[:, :, 7])) < 0.2


def test_what_cannot_be_planted_is_said():
    with pytest.raises(ShapeError):
        planted([band_mask(8, 1), band_mask(9, 1)])
    with pytest.raises(BudgetError):
        planted([torch.ones(8, 8, dtype=torch.bool)])
    with pytest.raises(BudgetError):
        frames(GRID, rho=2.0)
