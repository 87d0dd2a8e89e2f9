"""SparseConv2d against torch's convolution with the masked weight."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparseworks.core.errors import CheckpointError, DtypeError, KernelError, ModelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, SparseConv2d
from sparseworks.exec.conv import layer as module
from sparseworks.exec.conv.layer import _READS
from sparseworks.exec.layers import layer_of
from sparseworks.exec.native import native
from sparseworks.exec.race import candidates
from sparseworks.io.packed import build_empty, describe


def pair(c=5, out=7, kernel=3, keep=0.4, **options):
    conv = nn.Conv2d(c, out, kernel, **options)
    taps = conv.weight[0, 0].numel()
    mask = torch.rand(out, taps * c) < keep
    mask[0] = keep == 1  # an output without entries
    support = Support.from_mask(mask)
    sparse = SparseConv2d.from_conv(conv, support)
    with torch.no_grad():
        conv.weight.mul_(mask.view(out, *conv.kernel_size, c).permute(0, 3, 1, 2))
    return conv, sparse, support


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 5, (1, 4)])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("padding", [0, 1, (2, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
@torch.no_grad()
def test_every_geometry(every_isa, kernel, stride, padding, dilation):
    conv, sparse, _ = pair(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    for shape in ((1, 5, 17, 33), (3, 5, 13, 14), (5, 9, 9)):
        x = torch.randn(shape)
        close(sparse(x), conv(x))


@pytest.mark.parametrize("c, out", [(1, 1), (150, 3), (64, 33)])
@pytest.mark.parametrize("keep", [0.0, 0.05, 1.0])
@torch.no_grad()
def test_channels_and_densities(every_isa, c, out, keep):
    conv, sparse, support = pair(c, out, keep=keep, padding=1, bias=keep > 0)
    for n, h, w in ((1, 1, 1), (1, 2, 3), (2, 28, 28), (0, 4, 5)):
        x = torch.randn(n, c, h, w)
        close(sparse(x), conv(x))
        close(sparse(x.to(memory_format=torch.channels_last)), conv(x))
    assert sparse.support() == support and torch.equal(sparse.dense_weight(), conv.weight)


@pytest.mark.parametrize("c, side", [(1, 1), (3, 2), (11, 7), (70, 14), (9, 40)])
@torch.no_grad()
def test_plain_maps_are_read_where_they_lie(every_isa, c, side):
    conv, sparse, _ = pair(c, 13, 1)
    x = torch.randn(2, c, side, side)
    before = x.clone()
    close(sparse(x), conv(x))
    assert torch.equal(x, before)


@torch.no_grad()
def test_without_input_channels_the_bias_is_left(every_isa):
    if every_isa == "none":
        pytest.skip("torch's convolution has no outputs there")
    packed = FORMATS.get("taps").pack(torch.zeros(3, 0), Support.full((3, 0)))
    bias = torch.randn(3)
    y = SparseConv2d.from_packed(packed, bias)(torch.zeros(2, 0, 4, 5))
    assert torch.equal(y, bias[:, None, None].expand(2, 3, 4, 5))


@torch.no_grad()
def test_the_extension_computes_by_itself(every_isa, monkeypatch):
    conv, sparse, _ = pair(padding=1, stride=2)
    x = torch.randn(2, 5, 9, 11)
    expected = conv(x)

    def forbidden(*_args, **_options):
        raise AssertionError("the dense convolution ran")

    if every_isa != "none":
        monkeypatch.setattr("sparseworks.exec.conv.layer.F.conv2d", forbidden)
        monkeypatch.setattr(SparseConv2d, "dense_weight", forbidden)
    close(sparse(x), expected)


@torch.no_grad()
def test_compiled_callers_break_their_graph_here():
    conv, sparse, _ = pair(padding=1)
    x = torch.randn(2, 5, 9, 11)
    close(torch.compile(nn.Sequential(sparse, nn.ReLU()), backend="eager")(x), conv(x).relu())


@pytest.mark.parametrize("padding", ["same", "valid"])
@torch.no_grad()
def test_padding_by_name(padding):
    conv, sparse, _ = pair(kernel=(3, 5), padding=padding, dilation=2)
    x = torch.randn(1, 5, 12, 13)
    close(sparse(x), conv(x))


sizes = st.integers(1, 4)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, sizes, st.integers(0, 3), st.integers(1, 20), st.integers(1, 20))
def test_any_window(kernel, stride, dilation, c, padding, h, w):
    reach = dilation * (kernel - 1) + 1
    h, w = max(h, reach - 2 * padding), max(w, reach - 2 * padding)
    conv, sparse, _ = pair(c, 3, kernel, stride=stride, padding=padding, dilation=dilation)
    x = torch.randn(2, c, h, w)
    with torch.no_grad():
        close(sparse(x), conv(x))


def test_gradients_flow_to_the_input_and_the_bias():
    conv, sparse, _ = pair(padding=1, stride=2)
    for shape in ((2, 5, 9, 10), (5, 9, 10)):
        a = torch.randn(shape, requires_grad=True)
        b = a.detach().clone().requires_grad_()
        for layer, x in ((conv, a), (sparse, b)):
            layer.zero_grad()
            layer(x).square().sum().backward()
        close(b.grad, a.grad)
        close(sparse.bias.grad, conv.bias.grad)


@torch.no_grad()
def test_other_types_and_autocast_run_the_dense_weight():
    conv, sparse, _ = pair(padding=1)
    x = torch.randn(1, 5, 8, 8)
    close(copy.deepcopy(sparse).double()(x.double()), conv.double()(x.double()))
    conv.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse(x).dtype is torch.bfloat16


@torch.no_grad()
def test_copied_saved_and_built_empty():
    _, sparse, _ = pair(padding=1, stride=2)
    x = torch.randn(2, 5, 9, 11)
    sparse(x)
    empty = build_empty("x", describe(sparse))
    empty.load_state_dict(sparse.state_dict())
    for twin in (copy.deepcopy(sparse), empty):
        assert torch.equal(twin(x), sparse(x))
    assert describe(empty) == describe(sparse) and "stride=(2, 2)" in repr(sparse)
    with pytest.raises(CheckpointError, match="x"):
        build_empty("x", {**describe(sparse), "window": [[3]]})


@pytest.mark.parametrize("faster", ["dense", "taps-fp32"])
@torch.no_grad()
def test_an_example_plans_the_layer(clock, monkeypatch, faster):
    monkeypatch.setattr("sparseworks.exec.conv.kernel.why_missing", lambda: None)
    clock.us[faster] = 10.0
    conv, _, support = pair(padding=1)
    x = torch.randn(1, 5, 8, 8)
    layer = SparseConv2d.from_conv(conv, support, example=x)
    assert layer.rungs == [(0, faster)] and set(dict(layer.named_buffers())) == set(_READS[faster])
    close(layer(x), conv(x))


@torch.no_grad()
def test_the_kernel_changes_with_the_positions(monkeypatch):
    conv, _, support = pair(padding=1, stride=2)
    layer = SparseConv2d.from_conv(conv, support, rungs=[(0, "taps-fp32"), (20, "dense"), (50, "taps-fp32")])
    empty = SparseConv2d.from_metadata(layer.metadata())
    empty.load_state_dict(layer.state_dict())
    assert describe(empty) == describe(layer) and empty.support() == support
    assert "taps-fp32, dense from 20 positions" in repr(layer)
    ran = []
    torchs = SparseConv2d._torch
    monkeypatch.setattr(SparseConv2d, "_torch", lambda self, x, w: ran.append(x.shape[0]) or torchs(self, x, w))
    for twin in (layer, empty, copy.deepcopy(layer)):
        ran.clear()
        for n in (1, 2, 3, 4):  # of 4x4 outputs each
            x = torch.randn(n, 5, 7, 8)
            monkeypatch.setattr(twin, "_compiled", lambda x: True) if native() else None
            close(twin(x), conv(x))
        assert ran == [2, 3] if native() else ran == [1, 2, 3, 4]


def test_rungs_that_do_not_fit_are_refused():
    conv, sparse, support = pair()
    packed = sparse.packed
    for rungs in ([(0, "csr16-fp32")], [(1, "dense")], [(0, "dense"), (0, "taps-fp32")], []):
        with pytest.raises(KernelError, match="do not fit"):
            SparseConv2d.from_conv(conv, support, rungs=rungs)
    other = FORMATS.get("csr16").pack(torch.ones(4, 8), Support.full((4, 8)))
    with pytest.raises(KernelError, match="reads 'taps', not 'csr16'"):
        SparseConv2d.from_packed(other, None)
    with pytest.raises(KernelError, match="dense weight only"):
        _ = SparseConv2d.from_packed(packed, None, [(0, "dense")]).packed


def test_refusals():
    support = Support.from_mask(torch.ones(4, 36, dtype=torch.bool))
    for conv in (
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, padding_mode="circular"),
        nn.Conv2d(4, 4, (2, 3), padding="same"),
        nn.Linear(36, 4),
    ):
        with pytest.raises(ModelError, match="leave it dense"):
            SparseConv2d.from_conv(conv, support)
    with pytest.raises(ShapeError, match="support"):
        SparseConv2d.from_conv(nn.Conv2d(5, 4, 3), support)
    layer = SparseConv2d.from_conv(nn.Conv2d(4, 4, 3), support)
    for x in (torch.randn(2, 3, 9, 9), torch.randn(2, 4, 2, 9), torch.randn(4, 9), torch.randn(4)):
        with pytest.raises(ShapeError, match="4 channels"):
            layer(x)
    for dtype in (torch.int32, torch.float64):
        with pytest.raises(DtypeError, match=r"bias of torch\.float32"):
            layer(torch.zeros(1, 4, 9, 9, dtype=dtype))
    with pytest.raises(ShapeError, match="bias"):
        SparseConv2d(dict(layer.named_buffers()), torch.zeros(3), window=layer.window, shape=(4, 4))
    with pytest.raises(KernelError, match="metadata"):
        SparseConv2d.from_metadata({})


@pytest.mark.parametrize(
    "damage",
    [
        lambda layer: layer.columns.__setitem__(3, 1000),
        lambda layer: layer.columns.__setitem__(0, -1),
        lambda layer: layer.columns.__setitem__(1, int(layer.columns[0])),
        lambda layer: layer.ptr.__setitem__(2, 1 << 30),
        lambda layer: layer.ptr.__setitem__(-1, 3),
        lambda layer: setattr(layer, "values", layer.values[:-1].clone()),
        lambda layer: setattr(layer, "ptr", layer.ptr.long()),
    ],
)
@torch.no_grad()
def test_damage_is_noticed_also_after_a_call(damage):
    _, layer, _ = pair(keep=1.0)
    x = torch.randn(1, 5, 8, 8)
    layer(x)
    damage(layer)
    with pytest.raises(KernelError, match="damaged"):
        layer(x)


@pytest.mark.skipif(native() is None, reason="counts what the extension's way prepares")
@torch.no_grad()
def test_maps_of_several_sizes_are_prepared_once_each(monkeypatch):
    conv, sparse, _ = pair(8, 8, 3, padding=1)
    found, real = [], module.taps_of
    monkeypatch.setattr(module, "taps_of", lambda *a: found.append(1) or real(*a))
    sizes = [torch.randn(1, 8, side, side) for side in (4, 5, 6, 7, 8)]
    for _ in range(3):
        for x in sizes:
            close(sparse(x), conv(x))
    assert len(found) == 5
    prepared, real_guarded = [], module.guarded
    monkeypatch.setattr(module, "guarded", lambda *a: prepared.append(1) or real_guarded(*a))
    for x in sizes:
        close(sparse(x.to(memory_format=torch.channels_last)), conv(x))
    assert not prepared


def test_files_without_rungs_are_read():
    """As they were written before layers could hold a dense weight, too."""
    _, sparse, _ = pair()
    meta = sparse.metadata()
    del meta["rungs"]
    twin = SparseConv2d.from_metadata(meta)
    twin.load_state_dict(sparse.state_dict())
    x = torch.randn(2, 5, 9, 9)
    close(twin(x), sparse(x))


def test_half_precision_is_no_case_for_kernels_of_maps():
    _, _, support = pair(8, 8, 3)
    call = layer_of(nn.Conv2d(8, 8, 3)).call(support, 1, (1, 8, 9, 9))
    assert "taps-fp32" in candidates(support, call, (torch.float32,))[0]
    assert "taps-fp32" not in candidates(support, replace(call, dtype=torch.bfloat16), (torch.float32,))[0]
