"""Layers: what can be swapped, how its weight is read, and why the rest cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparseworks.core.errors import KernelError, ModelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec import SparseConv1x1, SparseConv2d, SparseLinear
from sparseworks.exec.layers import layer_of, pack_for, why_not

pytestmark = pytest.mark.usefixtures("toys")

LAYERS = {
    "linear": lambda: nn.Linear(12, 8),
    "linear without bias": lambda: nn.Linear(12, 8, bias=False),
    "hugging face conv1d": lambda: Conv1D(8, 12),
    "conv1d": lambda: nn.Conv1d(12, 8, 1),
    "conv1d stride": lambda: nn.Conv1d(12, 8, 1, stride=3),
    "conv2d": lambda: nn.Conv2d(12, 8, 1, bias=False),
    "conv2d stride": lambda: nn.Conv2d(12, 8, 1, stride=(2, 3)),
}


@pytest.mark.parametrize("kernel", ["dense", "toy-any"])
@pytest.mark.parametrize("kind", LAYERS)
def test_packed_equals_masked_dense(kind, kernel, random_support):
    module, support = LAYERS[kind](), random_support(8, 12, 0.5)
    layer = layer_of(module)
    assert layer.weight().shape == (8, 12)
    sparse = layer.wrap(pack_for(layer, support, [(0, kernel)]))
    with torch.no_grad():
        layer.weight().mul_(support.mask())  # a view: the dense module is masked now
    for rows in (1, 7):
        x = layer.example(layer.call(support, rows, None))
        torch.testing.assert_close(sparse(x), module(x))
    assert torch.equal(sparse.dense_weight(), layer.weight())


@pytest.mark.parametrize("kind", LAYERS)
def test_example_has_the_rows_asked_for(kind):
    layer = layer_of(LAYERS[kind]())
    call = layer.call(Support.full((8, 12)), 6, None)
    out = layer.module(layer.example(call))
    assert call.rows == 6 and out.numel() == 6 * 8
    assert torch.equal(layer.example(call), layer.example(call))


SEEN = {
    "linear": ((2, 3, 12), 6, None),
    "hugging face conv1d": ((12,), 1, None),
    "conv1d": ((12, 7), 7, None),
    "conv1d stride": ((2, 12, 7), 6, None),
    "conv2d": ((2, 12, 5, 4), 40, (2, (5, 4))),
    "conv2d stride": ((12, 5, 4), 6, (1, (5, 4))),
    "conv2d 3x3": ((3, 12, 9, 7), 60, (3, (9, 7))),
}


@pytest.mark.parametrize("kind", SEEN)
def test_a_call_has_the_rows_of_the_input_that_was_seen(kind):
    seen, rows, maps = SEEN[kind]
    module = nn.Conv2d(12, 8, 3, stride=2, padding=1) if kind == "conv2d 3x3" else LAYERS[kind]()
    layer = layer_of(module)
    call = layer.call(Support.full(tuple(layer.weight().shape)), 99, seen)
    assert (call.rows, call.maps and (call.maps.images, call.maps.size)) == (rows, maps)
    assert module(layer.example(call)).numel() == rows * 8 == module(torch.randn(seen)).numel()
    assert str(call) == ("3 images of 9x7" if kind == "conv2d 3x3" else str(call))


def test_larger_kernels_need_an_input():
    assert layer_of(nn.Conv2d(12, 8, 3)).call(Support.full((8, 108)), 5, None) is None


def test_a_call_counts_the_numbers_it_reads_and_writes():
    call = layer_of(nn.Conv2d(12, 8, 3, stride=2, padding=1)).call(Support.full((8, 108)), 1, (3, 12, 9, 7))
    assert call.entries == 3 * 12 * 9 * 7 + 3 * 8 * 5 * 4
    assert layer_of(nn.Linear(12, 8)).call(Support.full((8, 12)), 5, None).entries == 5 * 20


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(12, 8, 3, padding_mode="circular"),
        nn.Conv1d(12, 12, 1, groups=3),
        nn.Embedding(8, 12),
        nn.ReLU(),
    ],
)
def test_other_modules_are_refused(module):
    with pytest.raises(ModelError, match=f"A {type(module).__name__} is neither"):
        layer_of(module)


def test_pack_for_refuses_with_the_formats_words(random_support):
    layer = layer_of(nn.Linear(12, 8))
    with pytest.raises(KernelError, match="'picky' refuses this support: it wants 3 of every 5 inputs"):
        pack_for(layer, random_support(8, 12, 0.5), [(0, "picky-any")])
    with pytest.raises(ShapeError, match=r"\(8, 12\), its support \(12, 8\)"):
        pack_for(layer, random_support(12, 8, 0.5), [(0, "toy-any")])


def test_pack_for_packs_each_form_once(random_support):
    layer = layer_of(nn.Linear(12, 8))
    sparse = pack_for(layer, random_support(8, 12, 0.5), [(0, "toy-few"), (9, "toy-any"), (99, "dense")])
    assert [form.format for form in sparse.forms] == ["toy", "dense"]
    assert pack_for(layer_of(layer.module.eval()), sparse.support(), [(0, "dense")]).training is False


def test_wrap():
    conv, linear = layer_of(nn.Conv2d(12, 8, 1, stride=2)), layer_of(nn.Linear(12, 8))
    sparse = pack_for(linear, Support.full((8, 12)), [(0, "dense")])
    assert isinstance(linear.wrap(sparse), SparseLinear)
    wrapped = conv.wrap(sparse)
    assert isinstance(wrapped, SparseConv1x1) and wrapped.stride == (2, 2)


def test_build_takes_maps_or_rows_as_the_kernel_does(random_support):
    for conv in (nn.Conv2d(12, 8, 1, stride=2), nn.Conv2d(12, 8, 3).eval()):
        layer = layer_of(conv)
        support = random_support(*layer.weight().shape, 0.5)
        sparse = layer.build(support, [(0, "taps-fp32"), (99, "dense")])
        assert isinstance(sparse, SparseConv2d) and sparse.support() == support
        assert sparse.training is conv.training
    assert isinstance(layer_of(nn.Conv2d(12, 8, 1)).build(Support.full((8, 12)), [(0, "toy-any")]), SparseConv1x1)


class Own(nn.Linear):
    """A subclass may do anything with its weight."""


def _model():
    model = nn.ModuleDict({"plain": nn.Linear(8, 8), "own": Own(8, 8), "norm": nn.LayerNorm(8)})
    model["parametrised"] = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    model["hooked"] = nn.Linear(8, 8)
    model["hooked"].register_forward_pre_hook(lambda *_: None)
    model["tied"], model["other"] = nn.Linear(8, 8), nn.Linear(8, 8)
    model["other"].weight = model["tied"].weight
    model["encoder"] = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    return model


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("plain", None),
        ("own", "a Own has no packed counterpart"),
        ("norm", "a LayerNorm has no packed counterpart"),
        ("parametrised", "has no packed counterpart|computed anew"),
        ("hooked", "carries forward hooks"),
        ("tied", "tied to other.weight"),
        ("other", "tied to tied.weight"),
        ("encoder.linear1", "TransformerEncoderLayer reads the weight past the layer"),
        ("plain[q]", "not a module of its own"),
        ("nowhere", "not a module of its own"),
    ],
)
def test_why_not(name, sentence):
    import re

    said = why_not(_model(), name)
    assert (said is None) if sentence is None else re.search(sentence, said)
