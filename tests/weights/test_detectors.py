"""Detectors with fewer channels: what thresholds leave, and what distillation of their feature maps brings back."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sparseworks as sw
from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.evaluate import BlobNet, Blobs, Detecting
from sparseworks.stream import dependency_groups
from sparseworks.weights import ChannelWise, MapError, SpatialAttention, Task, recover
from sparseworks.weights.distill import Outputs, Recorder
from sparseworks.weights.train import ThresholdGammas

NECK = ("net.neck",)


def maps(seed, shape=(2, 3, 4, 4)):
    return Outputs(None, maps={"neck": torch.randn(*shape, generator=torch.Generator().manual_seed(seed))})


# -- the losses -------------------------------------------------------------------------------------------------------


def test_channel_wise_is_the_divergence_over_positions_channel_by_channel():
    s, t = maps(0), maps(1)
    total = 0.0
    for n in range(2):
        for c in range(3):
            p, q = (F.softmax(o.maps["neck"][n, c].flatten() / 2, dim=0) for o in (t, s))
            total += 4 * float((p * (p / q).log()).sum()) / 3
    term = ChannelWise(("neck",), temperature=2.0)
    assert float(term(s, t)) == pytest.approx(total / 2, rel=1e-5)
    shifted = Outputs(None, maps={"neck": s.maps["neck"] + torch.randn(2, 3, 1, 1)})
    assert float(term(shifted, s)) == pytest.approx(0, abs=1e-6) and float(MapError(("neck",))(shifted, s)) > 0.1


def test_spatial_attention_is_the_distance_of_normalised_maps_whatever_the_channels():
    s, t = maps(0, (2, 5, 4, 4)), maps(1)
    q = [o.maps["neck"].square().sum(dim=1).flatten(1) for o in (s, t)]
    expected = ((q[0] / q[0].norm(dim=1, keepdim=True) - q[1] / q[1].norm(dim=1, keepdim=True)) ** 2).sum(dim=1).mean()
    assert float(SpatialAttention(("neck",))(s, t)) == pytest.approx(float(expected), rel=1e-5)
    scaled = Outputs(None, maps={"neck": 3 * s.maps["neck"]})
    assert float(SpatialAttention(("neck",))(scaled, s)) == pytest.approx(0, abs=1e-6)


def test_maps_that_cannot_be_compared_are_refused():
    with pytest.raises(ShapeError, match="whole"):
        ChannelWise(("neck",))(maps(0, (2, 5, 4, 4)), maps(1))
    with pytest.raises(ShapeError):
        SpatialAttention(("neck",))(maps(0, (2, 3, 2, 2)), maps(1))
    for term in (MapError(), MapError(("head",))):
        with pytest.raises(ModelError, match="name those"):
            term(maps(0), maps(1))
    with pytest.raises(ModelError, match="no module 'head'"):
        Recorder(nn.Sequential(nn.Linear(2, 2)), modules=["head"])


def test_recovery_lets_norms_average_only_where_it_is_told_to():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    whole = Losing(model)
    batches = [{"x": torch.randn(4, 1, 4, 4) + 2}]
    first = model[1].running_mean.clone()
    options = {"supports": {}, "terms": [Task()], "steps": 2, "progress": False}
    recover(whole, None, batches, **options)
    assert torch.equal(model[1].running_mean, first) and model[1].training
    found = recover(whole, None, batches, normalise=True, validate=lambda m: 1.0 + m.training, every=1, **options)
    assert not torch.equal(model[1].running_mean, first) and found.best == 1.0
    assert model[1].training == model.training


class Losing(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return SimpleNamespace(loss=self.net(x).square().mean())


# -- the effects ------------------------------------------------------------------------------------------------------


class Case:
    """A detector trained with L1 on its factors, before anything is cut, and the data."""

    def __init__(self):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.data, self.few, self.test = Blobs.draw(600, 1), Blobs.draw(64, 77), Blobs.draw(150, 2)
        torch.manual_seed(0)
        self.net = self.trained(BlobNet(), 130)
        torch.set_num_threads(threads)

    def trained(self, net, steps):
        g, whole = torch.Generator().manual_seed(0), Detecting(net)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        method = sw.method("yolov8_cwd", density=0.5, train=ThresholdGammas(rate=1e-2))
        run = sw.Sparsifier(net, method, optimizer, steps=steps + 1, couplings=self.groups(net))
        for _ in range(steps):
            at = torch.randint(len(self.data.images), (32,), generator=g)
            optimizer.zero_grad()
            whole(self.data.images[at], self.data.heat[at]).loss.backward()
            optimizer.step()
            run.step()
            rate.step()
        return net

    def groups(self, net):
        return [c for c in dependency_groups(net, self.data.images[:2]) if not c.name.startswith("neck")]

    def cut(self, density, **regime):
        small = copy.deepcopy(self.net)
        method = sw.method("yolov8_cwd", density=density, train=ThresholdGammas(**regime))
        optimizer = torch.optim.SGD(small.parameters(), lr=0.0)
        run = sw.Sparsifier(small, method, optimizer, steps=1, couplings=self.groups(small))
        run.finish()
        kept = run.slice()
        return small, {name: int(mask.sum()) for name, mask in kept.items()}

    def tuned(self, small, *terms, seed=0, steps=25):
        student = Detecting(copy.deepcopy(small))
        recover(
            student, Detecting(self.net), self.few.batches(16), supports={}, terms=[Task(), *terms], steps=steps, lr=5e-3,
            normalise=True, seed=seed, progress=False,
        )  # fmt: skip
        return self.test.average_precision(student.net)


@pytest.fixture(scope="module")
def case():
    return Case()


@pytest.fixture(scope="module")
def small(case):
    """A third of the parameters, by one threshold with a floor, and its precision after plain fine-tuning with three seeds."""
    net, kept = case.cut(0.39)
    return net, kept, [case.tuned(net, seed=seed) for seed in range(3)]


def size(net):
    return sum(p.numel() for p in net.parameters())


def multiplications(net):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, 1, 24, 24))
    return counter.get_total_flops()


def test_seventy_per_cent_of_the_parameters_go_and_with_them_work_and_no_layer_is_emptied(case, small):
    net, kept, _ = small
    assert size(net) < 0.3 * size(case.net) and multiplications(net) < 0.5 * multiplications(case.net)
    whole = {c.name: c.units for c in case.groups(case.net)}
    assert all(kept[name] >= 0.1 * units for name, units in whole.items()) and set(kept) == set(whole)
    assert net.neck[0].out_channels == case.net.neck[0].out_channels


def test_channel_wise_distillation_brings_back_more_than_fine_tuning_alone(case, small):
    net, _, plain = small
    distilled = [case.tuned(net, ChannelWise(NECK, 30.0, 4.0), seed=seed) for seed in range(3)]
    assert min(distilled) > max(plain) + 2, (plain, distilled)


def test_attention_maps_bring_back_more_than_fine_tuning_alone(case, small):
    net, _, plain = small
    distilled = [case.tuned(net, SpatialAttention(NECK, 10.0), seed=seed) for seed in range(3)]
    assert min(distilled) > max(plain) + 2, (plain, distilled)


def test_thresholds_of_sections_empty_no_layer_where_one_threshold_does(case):
    _, one = case.cut(0.39, floor=0.0)
    _, each = case.cut(0.47, floor=0.0, sections="modules")
    assert min(one.values()) == 1 and min(each.values()) >= 4
    whole = {c.name: c.units for c in case.groups(case.net)}
    assert all(abs(each[name] / units - 0.47) < 0.06 for name, units in whole.items())
