from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS
from sparseworks.exec.native import native
from sparseworks.exec.skipping import MOST_KEPT, SkippingLinear, kept_by_count, kept_by_threshold

needs_extension = pytest.mark.skipif(native() is None, reason="the compiled extension is not built")
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
PACKINGS = ["inmajor", "inbits"]


def linear(out: int = 37, width: int = 50, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, out, bias=bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rule", [{"threshold": 0.6}, {"keep": 20}, {"keep": 20, "exact": False}, {"keep": 0}, {"keep": 50}]
)
@pytest.mark.parametrize("rows", [0, 1, 4, 9, 30])
@pytest.mark.parametrize("packing", PACKINGS)
def test_is_the_product_with_the_kept_inputs(dtype, rule, rows, packing):
    dense = linear()
    layer = SkippingLinear.from_linear(dense, dtype=dtype, format=packing, **rule)
    x = torch.randn(rows, 50)
    weight = FORMATS.get("inmajor").rounded(dense.weight.detach(), dtype).float()
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(y, F.linear(layer.kept(x), weight, dense.bias), rtol=1e-5, atol=1e-5)
        if rows and rule.get("keep") != 50:
            assert not torch.allclose(y, F.linear(x, weight, dense.bias), atol=1e-3)


def test_count_keeps_the_largest_and_ties_go_to_the_lower_index():
    x = torch.tensor([[1.0, -3.0, 3.0, 3.0, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0], [2.0, float("nan"), -9.0, 1.0, 1.0]])
    kept = kept_by_count(x, 2)
    assert kept[0].tolist() == [0.0, -3.0, 3.0, 0.0, 0.0] and not kept[1].any()
    assert kept[2].isnan().tolist() == [False, True, False, False, False] and kept[2, 2] == -9.0
    assert torch.equal(kept_by_count(x[:2], 5), x[:2]) and not kept_by_count(x[:2], 0).any()


def test_threshold_keeps_nan_and_drops_what_equals_it():
    kept = kept_by_threshold(torch.tensor([[0.5, -0.5, 0.6, -0.7, float("nan")]]), 0.5)
    assert kept[0, :4].tolist() == [0.0, 0.0, pytest.approx(0.6), pytest.approx(-0.7)] and kept[0, 4].isnan()


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("shape", [(1, 1), (37, 50), (131, 23)])
@pytest.mark.parametrize("rule", [{"threshold": 0.4}, {"keep": 0.3}, {"keep": 0.3, "exact": False}])
def test_composes_with_sparse_weights(packing, dtype, shape, rule, every_isa, monkeypatch):
    """Weights that are dropped and inputs that are skipped, inputs without weights and outputs without any among them."""
    if "keep" in rule:
        rule = {**rule, "keep": round(rule["keep"] * shape[1])}
    torch.manual_seed(1)
    dense, mask = nn.Linear(shape[1], shape[0]), torch.rand(shape) < 0.4
    mask[:, ::3] = mask[4::5] = False
    layer = SkippingLinear.from_linear(dense, Support.from_mask(mask), dtype=dtype, format=packing, **rule)
    weight, kept = layer.packed.unpack()
    assert layer.packed.format == packing and torch.equal(kept.mask(), mask) and not weight[~mask].any()
    x = torch.randn(5, shape[1])
    x[3] = 0.0
    expected = F.linear(layer.kept(x), weight.float(), dense.bias.detach())
    monkeypatch.setattr(SkippingLinear, "_dense", None)
    y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(y[3], dense.bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_read_where_enough_weights_are_dropped(dtype):
    dense, few = linear(), Support.from_mask(torch.rand(37, 50) < 0.9 * MOST_KEPT[dtype])
    many = Support.from_mask(torch.rand(37, 50) < MOST_KEPT[dtype] + 0.1)
    formats = [
        SkippingLinear.from_linear(dense, s, dtype=dtype, threshold=0.1).packed.format for s in (None, many, few)
    ]
    assert formats == ["inmajor", "inmajor", "inbits"]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("out", "width"), [(0, 4), (4, 0)])
def test_nothing_to_multiply_gives_the_bias(packing, out, width):
    packed = FORMATS.get(packing).pack(torch.zeros(out, width), Support.full((out, width)))
    assert torch.equal(SkippingLinear(packed, torch.ones(out), threshold=0.0)(torch.ones(3, width)), torch.ones(3, out))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("rows", [1, 20])
def test_all_weights_dropped_gives_the_bias(packing, rows):
    dense = linear()
    layer = SkippingLinear.from_linear(dense, Support.empty((37, 50)), threshold=0.0, format=packing)
    assert torch.equal(layer(torch.randn(rows, 50)), dense.bias.expand(rows, 37))


@needs_extension
@pytest.mark.parametrize("packing", PACKINGS)
def test_nan_is_no_small_input(packing, every_isa):
    layer = SkippingLinear.from_linear(linear(), threshold=9.0, format=packing)
    x = torch.randn(2, 50)
    x[1, 7] = float("nan")
    with torch.no_grad():
        assert layer(x).isnan().all(dim=1).tolist() == [False, True]


def test_gradients_reach_the_kept_inputs_only():
    x = torch.randn(2, 50, requires_grad=True)
    SkippingLinear.from_linear(linear(), threshold=0.6)(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad != 0, x.detach().abs() > 0.6)


@pytest.mark.parametrize("packing", PACKINGS)
def test_leading_dimensions_types_and_state(packing):
    layer = SkippingLinear.from_linear(linear(bias=False), keep=10, format=packing)
    assert layer(torch.randn(2, 3, 50)).shape == (2, 3, 37)
    assert layer(torch.randn(50).bfloat16()).dtype is torch.bfloat16
    other = SkippingLinear.from_linear(nn.Linear(50, 37, bias=False), keep=10, format=packing)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, 50)
    assert torch.equal(other(x), layer(x)) and f"{packing} float32, keep=10" in repr(layer)


def test_wrong_arguments_are_said():
    dense = linear()
    rules: tuple[dict[str, Any], ...] = (
        {},
        {"threshold": 0.1, "keep": 3},
        {"threshold": -1.0},
        {"threshold": float("nan")},
        {"keep": 51},
    )
    for rule in rules:
        with pytest.raises(KernelError):
            SkippingLinear.from_linear(dense, **rule)
    support = Support.full((37, 50))
    with pytest.raises(KernelError, match="inmajor"):
        SkippingLinear(FORMATS.get("dense").pack(dense.weight, support), keep=1)
    with pytest.raises(ShapeError, match="outputs"):
        SkippingLinear(FORMATS.get("inmajor").pack(dense.weight, support), torch.zeros(36), keep=1)
    with pytest.raises(ShapeError, match="takes"):
        SkippingLinear.from_linear(dense, keep=3)(torch.zeros(2, 49))
