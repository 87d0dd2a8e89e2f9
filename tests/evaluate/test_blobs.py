"""Blobs: what is drawn, and the precision of heat maps that are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.evaluate import BlobNet, Blobs, Detecting


class Saying(nn.Module):
    """Heat maps that are given."""

    def __init__(self, heat):
        super().__init__()
        self.heat = heat

    def forward(self, x):
        return self.heat[: len(x)].clamp(1e-4, 1 - 1e-4).logit()


def test_the_same_seed_draws_the_same_and_objects_lie_where_the_heat_is_one():
    a, b = Blobs.draw(12, 3), Blobs.draw(12, 3)
    assert torch.equal(a.images, b.images) and not torch.equal(a.images, Blobs.draw(12, 4).images)
    assert len(a.objects) == int((a.heat == 1).sum())
    assert all(a.heat[tuple(o)] == 1 for o in a.objects.tolist())
    assert [part["x"].shape[0] for part in a.batches(5)] == [5, 5, 2]


def test_precision_is_that_of_the_ranking_of_peaks():
    blobs = Blobs.draw(20, 3)
    assert blobs.average_precision(Saying(blobs.heat)) == pytest.approx(100)
    assert blobs.average_precision(Saying(torch.zeros_like(blobs.heat))) == 0
    assert blobs.average_precision(Saying(blobs.heat.roll(1, dims=1))) < 30  # places without classes
    image, kind, row, col = blobs.objects[0].tolist()
    heat = blobs.heat.clone()
    heat[image, kind, max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3] = 0
    lost = 100 * (1 - 1 / len(blobs.objects))
    assert blobs.average_precision(Saying(heat)) == pytest.approx(lost, abs=1e-6)


def test_the_loss_is_focal():
    torch.manual_seed(0)
    net, part = BlobNet((4, 4, 4)), Blobs.draw(3, 0).batches(3)[0]
    output, y = net(part["x"]), part["heat"]
    p = output.sigmoid()
    terms = torch.where(y == 1, (1 - p) ** 2 * p.log(), (1 - y) ** 4 * p**2 * (1 - p).log())
    assert torch.allclose(Detecting(net)(**part).loss, -terms.sum() / (y == 1).sum(), rtol=1e-4)
    assert torch.allclose(Detecting(net)(**part).output, output)
