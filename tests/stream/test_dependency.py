"""Dependency groups from a traced graph: for nets like those of torchvision, the sliced model computes what the masked one does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.core.site import Coupling, Member
from sparseworks.stream import dependency_groups, slice_units, zero_units


def norm(width: int) -> nn.BatchNorm2d:
    """With statistics and scales that differ from channel to channel."""
    made = nn.BatchNorm2d(width)
    for value in (made.weight, made.bias, made.running_mean):
        nn.init.normal_(value, 0.3, 0.5)
    nn.init.uniform_(made.running_var, 0.5, 2.0)
    return made


def conv(into: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, norm(out), nn.ReLU())


class Basic(nn.Module):
    """A residual block of ResNet-18."""

    def __init__(self, into: int, out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), norm(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), norm(out)) if stride > 1 or into != out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """A residual block of ResNeXt."""

    def __init__(self, width: int, inner: int, groups: int):
        super().__init__()
        self.conv1, self.conv2 = conv(width, inner, 1), conv(inner, inner, 3, groups=groups)
        self.conv3, self.bn3 = nn.Conv2d(inner, width, 1), norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn3(self.conv3(self.conv2(self.conv1(x)))))


class ResNet(nn.Module):
    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.conv1, self.bn1, self.maxpool = nn.Conv2d(3, 8, 3, 1, 1, bias=False), norm(8), nn.MaxPool2d(3, 2, 1)
        self.layers = nn.Sequential(*blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


class Inverted(nn.Module):
    """An inverted residual with squeeze and excitation, as in MobileNetV3."""

    def __init__(self, into: int, out: int, inner: int):
        super().__init__()
        self.expand, self.depthwise = conv(into, inner, 1), conv(inner, inner, 3, groups=inner)
        self.fc1, self.fc2 = nn.Conv2d(inner, 4, 1), nn.Conv2d(4, inner, 1)
        self.project, self.bn = nn.Conv2d(inner, out, 1, bias=False), norm(out)
        self.shortcut = into == out

    def forward(self, x: Tensor) -> Tensor:
        inner = self.depthwise(self.expand(x))
        scale = F.hardsigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(inner, 1)))))
        out = self.bn(self.project(scale * inner))
        return x + out if self.shortcut else out


class DenseLayer(nn.Module):
    def __init__(self, into: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = norm(into), nn.Conv2d(into, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = norm(2 * growth), nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, seen: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(seen, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    def __init__(self, into: int, growth: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(into + i * growth, growth) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(layer(seen))
        return torch.cat(seen, 1)


class Halves(nn.Module):
    """A cross-stage block: one half of the channels goes through, both are read together."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.last, self.head = conv(3, 8), conv(4, 4), conv(8, 6), nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        x = self.last(torch.cat([a, self.inner(b)], dim=1))
        return self.head(x.view(x.size(0), -1))


class ShortcutA(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))


class OptionA(nn.Module):
    """The shortcut of the ResNets of CIFAR-10 writes the number of its channels down."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1, self.conv2, self.short = conv(3, 8), conv(8, 16, 3, 2), conv(16, 16), ShortcutA()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.conv2(self.conv1(x)) + self.short(x)).mean((2, 3)))


def vgg() -> nn.Module:
    features = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 12), nn.MaxPool2d(2))
    top = [nn.Flatten(), nn.Linear(12 * 4, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 5)]
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), *top)


NETS = {
    "vgg": vgg,
    "resnet": lambda: ResNet(Basic(8, 8, 1), Basic(8, 16, 2), Basic(16, 16, 1)),
    "resnext": lambda: ResNet(Basic(8, 16, 2), Bottleneck(16, 12, 4), Bottleneck(16, 8, 2)),
    "mobilenet": lambda: ResNet(Inverted(8, 8, 16), Inverted(8, 16, 24)),
    "densenet": lambda: ResNet(DenseBlock(8, 4, 3), conv(20, 12, 1), nn.AvgPool2d(2), conv(12, 16)),
    "halves": Halves,
}


def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name]().eval()


def images(size: int = 4) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def some(listed: list[Coupling], seed: int) -> dict[str, Tensor]:
    """About half the units of every coupling."""
    g = torch.Generator().manual_seed(seed)
    kept = {c.name: torch.rand(c.units, generator=g) < 0.5 for c in listed}
    for mask in kept.values():
        mask[0] |= not mask.any()
    return kept


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_sliced_equals_masked(name, seed):
    model, x = net(name), images(4 if name == "halves" else 8)
    listed = dependency_groups(model, x)
    kept = some(listed, seed)
    masked, sliced = copy.deepcopy(model), copy.deepcopy(model)
    zero_units(masked, listed, kept)
    slice_units(sliced, listed, kept)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, sliced))
    with torch.no_grad():
        torch.testing.assert_close(sliced(x), masked(x), rtol=1e-6, atol=1e-6)
        assert (masked(x) - model(x)).abs().max() > 1e-3
    assert after < 0.75 * before
    assert F.cross_entropy(sliced.train()(x), torch.zeros(3, dtype=torch.long)).backward() is None
    if name != "resnext":  # a convolution with one group left is an ordinary one
        assert [c.units for c in dependency_groups(sliced.eval(), x)] == [int(kept[c.name].sum()) for c in listed]


def test_groups_of_a_residual_net():
    listed = {c.name: c for c in dependency_groups(net("resnet"), images(8))}
    assert {n: c.units for n, c in listed.items()} == {
        "conv1.channels": 8,
        "layers.0.conv1.channels": 8,
        "layers.1.conv1.channels": 16,
        "layers.1.conv2.channels": 16,
        "layers.2.conv1.channels": 16,
    }
    stage = listed["layers.1.conv2.channels"]
    assert {(m.site, m.axis, m.repeats) for m in stage.members} == {
        ("layers.1.conv2", "rows", 1),
        ("layers.1.downsample.0", "rows", 1),
        ("layers.2.conv2", "rows", 1),
        ("layers.2.conv1", "cols", 9),
        ("fc", "cols", 1),
    }
    assert {m.site for m in stage.norms} == {"layers.1.bn2", "layers.1.downsample.1", "layers.2.bn2"}


def test_groups_of_a_dense_net_lie_side_by_side():
    listed = {c.name: c for c in dependency_groups(net("densenet"), images(8))}
    second = listed["layers.0.layers.1.conv2.channels"]
    assert second.units == 4
    assert {(m.site, m.start, m.period) for m in second.members if m.axis == "cols"} == {
        ("layers.0.layers.2.conv1", 12, 16),
        ("layers.1.0", 12, 20),
    }
    assert {(m.site, m.start) for m in second.norms} == {("layers.0.layers.2.norm1", 12)}


def test_flattened_maps_and_groups_of_convolutions():
    flat = {c.name: c for c in dependency_groups(net("vgg"), images(8))}["0.2.0.channels"]
    assert [(m.width, m.repeats) for m in flat.members if m.axis == "cols"] == [(4, 1)]
    grouped = {c.name: c for c in dependency_groups(net("resnext"), images(8))}["layers.1.conv1.0.channels"]
    assert grouped.units == 4 and {(m.site, m.width) for m in grouped.members} == {
        ("layers.1.conv1.0", 3),
        ("layers.1.conv2.0", 3),
        ("layers.1.conv3", 3),
    }
    deep = {c.name: c for c in dependency_groups(net("mobilenet"), images(8))}["layers.0.expand.0.channels"]
    assert deep.units == 16
    assert [m.site for m in deep.members if m.axis == "rows"] == [
        "layers.0.expand.0", "layers.0.depthwise.0", "layers.0.fc2",
    ]  # fmt: skip


def test_a_shortcut_that_counts_channels_is_refused_or_left_whole():
    model, x = OptionA().eval(), images(8)
    with pytest.raises(ModelError, match=r"^Module 'short' calls 'pad'.*`whole=\['short'\]`"):
        dependency_groups(model, x)
    assert [c.name for c in dependency_groups(model, x, whole=["short"])] == ["conv1.0.channels"]


def test_modes_and_weights_are_left_alone():
    model = net("resnet").train()
    model.bn1.eval()
    before = copy.deepcopy(model.state_dict())
    dependency_groups(model, images(8))
    assert model.training and not model.bn1.training and model.layers.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Holding(nn.Module):
    """Two convolutions and something between them."""

    def __init__(self, between: nn.Module):
        super().__init__()
        self.first, self.between, self.last = nn.Conv2d(3, 4, 1), between, nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def between(call):
    class Between(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)

    return Between()


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.GroupNorm(2, 4), "GroupNorm"),
        (nn.Softmax(1), "Softmax"),
        (between(lambda x: x if x.sum() > 0 else -x), "cannot be traced"),
        (between(lambda x: x.view(3, 2, 2, 8, 8).transpose(1, 2).reshape(3, 4, 8, 8)), "changes the shape"),
        (between(lambda x: x.sum(1, keepdim=True).expand(3, 4, 8, 8)), "reduces over the channels"),
        (between(lambda x: x[:, [1, 0, 2, 3]]), "picks channels"),
        (between(lambda x: torch.cat([x[:, :2], x[:, 2:]], 1)), "picks channels"),
        (between(lambda x: torch.fft.fft2(x).real), "'fft_fft2'"),
        (between(lambda x: torch.softmax(x, 1)), "'softmax'"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(module, why):
    model = Holding(module).eval()
    with pytest.raises(ModelError, match=rf"^Module 'between'.*{why}[^\n]*as they are\.$"):
        dependency_groups(model, images(8))
    assert dependency_groups(model, images(8), whole=["between"]) == []


def test_a_layer_that_runs_twice_is_one_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.last = conv(3, 6), conv(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.again(self.again(self.first(x))).mean((2, 3)))

    model, x = Twice().eval(), images()
    (coupling,) = dependency_groups(model, x)
    assert len(coupling.members) == 4
    kept = {coupling.name: torch.arange(6) > 2}
    masked, sliced = copy.deepcopy(model), copy.deepcopy(model)
    zero_units(masked, [coupling], kept)
    slice_units(sliced, [coupling], kept)
    torch.testing.assert_close(sliced(x), masked(x), rtol=1e-6, atol=1e-6)


def test_slicing_refuses_what_cannot_be_cut_and_changes_nothing():
    model, x = net("resnext"), images(8)
    before = [p.shape for p in model.parameters()]
    parts = Coupling("parts", "channel", 12, (Member("layers.1.conv1.0", "rows"), Member("layers.1.conv2.0", "rows")))
    with pytest.raises(ModelError, match="groups go as a whole"):
        slice_units(model, [parts], {"parts": torch.arange(12) > 0})
    listed = dependency_groups(model, x)
    with pytest.raises(ShapeError, match="must keep at least one"):
        slice_units(model, listed, {listed[0].name: torch.zeros(listed[0].units, dtype=torch.bool)})
    with pytest.raises(ShapeError, match=r"rows of 'conv1' are 8, not 4 x 1 from 6 on"):
        slice_units(
            model, [Coupling("far", "channel", 4, (Member("conv1", "rows", start=6),))], {"far": torch.ones(4) > 0}
        )
    assert [p.shape for p in model.parameters()] == before
