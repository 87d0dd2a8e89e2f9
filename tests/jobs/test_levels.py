from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.jobs.levels import Level, level_table, total_us


def table(net, batches, method="wanda", patterns=("row",), densities=(0.5, 0.25)):
    return level_table(
        net, sw.sites(net), sw.method(method), batches, example=batches[0], patterns=patterns, densities=densities
    )


def test_every_site_has_its_levels_dense_first(net, batches, paced):
    found = table(net, batches)
    assert list(found) == [s.name for s in sw.sites(net)]
    for levels in found.values():
        assert [level.label for level in levels] == ["dense", "row 50%", "row 25%"]
        assert [level.us for level in levels] == pytest.approx([100.0, 50.0, 25.0])
        assert 0 == levels[0].error < levels[1].error < levels[2].error < 1
    assert total_us(found) == pytest.approx(600.0)


def test_a_shape_is_timed_once_a_level(net, batches, paced):
    table(net, batches)
    assert len(paced) == 2 * 2  # two shapes, two levels; the net has three layers of each shape


def test_levels_that_another_beats_are_left_out(net, batches, paced):
    fine, coarse = table(net, batches), table(net, batches, patterns=("row", "block:16x1"))
    assert all(len(coarse[name]) == len(fine[name]) for name in fine)  # equal time, more error


def test_patterns_that_do_not_fit_a_site_leave_it_dense(net, batches, paced):
    assert all(len(levels) == 1 for levels in table(net, batches, patterns=("block:24x1",)).values())


def test_modules_that_cannot_be_replaced_stay_dense(net, batches):
    net.layers[0].up.register_forward_hook(lambda *_: None)
    found = level_table(
        net, sw.sites(net)[:1], sw.method("wanda"), batches, example=batches[0], patterns=("row",), densities=(0.5,)
    )
    assert [level.label for level in found["layers.0.up"]] == ["dense"]
    assert found["layers.0.up"][0].us == 0.0


def test_gradient_methods_get_their_statistics(batches, paced):
    torch.manual_seed(0)

    class Lossy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            return SimpleNamespace(loss=self.second(torch.relu(self.first(x))).square().mean())

    found = table(Lossy(), batches, method="taylor")
    assert all(len(levels) == 3 for levels in found.values())


def test_levels_survive_a_journal():
    for level in (Level(None, 3.0, 0.0), Level(sw.method("sparsegpt", pattern="block:16x1", density=0.3), 1.0, 0.1)):
        assert Level.from_data(level.to_data()) == level


def test_convolutions_of_other_strides_or_maps_are_timed_apart(paced):
    def conv(stride):
        return nn.Conv2d(4, 4, 3, stride=stride, padding=1)

    net = nn.Sequential(conv(1), conv(1), conv(2), conv(1))
    images = [torch.randn(2, 4, 9, 9)]
    table(net, images, method="magnitude", densities=(0.5,))
    assert sorted(paced) == ["0", "2", "3"]  # the second is as the first
