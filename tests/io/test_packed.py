from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.core.support import Support
from sparseworks.exec import SparseConv1x1, SparseLinear
from sparseworks.io.packed import build_empty, describe, packed_layers, swap


def packed_linear(kernel: str) -> SparseLinear:
    layer, mask = nn.Linear(8, 4), (torch.rand(4, 4) < 0.5).repeat_interleave(2, dim=1)
    return SparseLinear.from_linear(layer, Support.from_mask(mask), kernel=kernel)


@pytest.fixture
def linear():
    return packed_linear("csr16-fp32")


@pytest.fixture
def pairs():
    return packed_linear("pairs-int16")


@pytest.fixture
def conv():
    layer, mask = nn.Conv2d(8, 4, 1, stride=2, bias=False), torch.rand(4, 8) < 0.5
    return SparseConv1x1.from_conv(layer, Support.from_mask(mask), kernel="csr16-fp32")


@pytest.mark.parametrize("kind", ["linear", "pairs", "conv"])
def test_an_empty_layer_filled_with_the_state_is_the_layer(kind, request):
    layer = request.getfixturevalue(kind)
    empty = build_empty("x", describe(layer))
    empty.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 5, 5) if kind == "conv" else torch.randn(3, 8)
    assert torch.equal(empty(x), layer(x))
    assert describe(empty) == describe(layer)


def test_the_linear_layer_inside_a_convolution_is_not_listed(linear, conv):
    model = nn.ModuleDict({"a": linear, "b": conv})
    assert packed_layers(model) == {"a": linear, "b": conv}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["rungs"][0].__setitem__(1, "from-the-future"),
        lambda m: m["forms"][0].update(format="from-the-future"),
        lambda m: m.update(layer="SparseFuture"),
        lambda m: m.pop("shape"),
    ],
)
def test_layers_of_other_versions_are_refused(linear, change):
    meta = describe(linear)
    change(meta)
    with pytest.raises(CheckpointError, match="packed layer 'x' cannot be rebuilt by this version"):
        build_empty("x", meta)


def test_swap_refuses_a_place_that_is_not_there(linear):
    with pytest.raises(ModelError, match=r"no layer 'a\.b'"):
        swap(nn.Sequential(), "a.b", linear)
