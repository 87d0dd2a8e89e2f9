"""The registered op: schema, fake, autograd, autocast and vmap rules, and the shortcut that must not differ from it."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.exec import FORMATS, ops
from sparseworks.exec.ladder import Rung, write_spec

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def weight():
    return torch.randn(8, 12)


@pytest.fixture
def packed(weight, random_support):
    """(parts, spec, masked weight)."""
    support = random_support(8, 12, 0.5)
    form = FORMATS.get("toy").pack(weight, support)
    spec, _ = write_spec([Rung(0, "toy-any", form)], 0.5)
    return list(form.parts.values()), spec, weight * support.mask()


def op(x, bias, packed):
    parts, spec, _ = packed
    return torch.ops.sparseworks.linear(x, bias, parts, spec, 8, 12)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12)])
def test_opcheck(packed, shape, with_bias):
    parts, spec, _ = packed
    x = torch.randn(shape, requires_grad=True)
    bias = torch.randn(8, requires_grad=True) if with_bias else None
    torch.library.opcheck(torch.ops.sparseworks.linear.default, (x, bias, parts, spec, 8, 12))


def test_opcheck_backward(packed):
    parts, spec, _ = packed
    grad = torch.randn(3, 8, requires_grad=True)
    torch.library.opcheck(torch.ops.sparseworks.linear_backward.default, (grad, parts, spec, 8, 12))


@pytest.mark.parametrize("with_bias", [False, True])
def test_gradcheck(packed, with_bias):
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True) if with_bias else None
    inputs = (x, bias) if with_bias else (x,)

    def run(x, bias=None):
        return op(x, bias, packed)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_direct_call_equals_the_op(packed):
    parts, spec, masked = packed
    x, bias = torch.randn(3, 12), torch.randn(8)
    with torch.no_grad():
        assert torch.equal(ops.linear(x, bias, parts, spec, 8, 12), op(x, bias, packed))
    torch.testing.assert_close(op(x, bias, packed), torch.nn.functional.linear(x, masked, bias))


def test_the_shortcut_is_taken_only_where_nothing_listens(packed, monkeypatch):
    parts, spec, _ = packed
    seen = []
    real = ops._linear_op
    monkeypatch.setattr(ops, "_linear_op", lambda *a: seen.append(1) or real(*a))

    def through_op(x, bias=None):
        seen.clear()
        ops.linear(x, bias, parts, spec, 8, 12)
        return bool(seen)

    x = torch.randn(3, 12)
    assert not through_op(x)
    assert not through_op(x, torch.randn(8))
    assert through_op(x.clone().requires_grad_())
    assert through_op(x, torch.randn(8, requires_grad=True))
    with torch.no_grad():
        assert not through_op(x.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        assert through_op(x)

    class Listens(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Listens():
        assert through_op(x)


def test_vmap(packed):
    _, _, masked = packed
    x, bias = torch.randn(5, 3, 12), torch.randn(5, 8)
    linear = torch.nn.functional.linear
    torch.testing.assert_close(torch.vmap(lambda a: op(a, None, packed))(x), linear(x, masked))
    torch.testing.assert_close(
        torch.vmap(lambda a: op(a, bias[0], packed), in_dims=1)(x), linear(x.transpose(0, 1), masked, bias[0])
    )
    both = torch.vmap(lambda a, b: op(a, b, packed))(x, bias)
    torch.testing.assert_close(both, linear(x, masked) + bias[:, None])
    only_bias = torch.vmap(lambda b: op(x[0], b, packed))(bias)
    torch.testing.assert_close(only_bias, linear(x[0], masked) + bias[:, None])
    nested = torch.vmap(torch.vmap(lambda a: op(a, None, packed)))(x)
    torch.testing.assert_close(nested, linear(x, masked))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_functional_derivatives_are_refused_in_our_words(packed, transform):
    parts, spec, _ = packed
    with pytest.raises(KernelError, match="cannot differentiate a packed layer"):
        transform(lambda a: ops.linear(a, None, parts, spec, 8, 12).sum())(torch.randn(12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_returns_its_type_and_multiplies_in_float32(packed, dtype):
    _, _, masked = packed
    x = torch.randn(64, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = op(x.to(dtype), None, packed)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, (x.to(dtype).float() @ masked.T).bfloat16(), rtol=8e-3, atol=1e-6)


def test_autocast_keeps_gradients(packed):
    _, _, masked = packed
    x = torch.randn(3, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        op(x, None, packed).float().sum().backward()
    torch.testing.assert_close(x.grad, masked.sum(0).expand(3, 12), rtol=2e-2, atol=2e-2)


def test_fake_tensors_with_symbolic_rows(packed):
    from torch._subclasses import FakeTensorMode

    parts, spec, _ = packed
    with FakeTensorMode() as mode:
        y = torch.ops.sparseworks.linear(torch.empty(4, 7, 12), None, [mode.from_tensor(p) for p in parts], spec, 8, 12)
        assert y.shape == (4, 7, 8)


def test_wrong_features(packed):
    with pytest.raises(ShapeError, match=r"takes 12 features, got an input of shape \(3, 8\)"):
        op(torch.randn(3, 8), None, packed)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.complex64])
def test_only_floating_point_is_taken(packed, dtype):
    with pytest.raises(DtypeError, match="floating point"):
        op(torch.ones(3, 12, dtype=dtype), None, packed)


def test_damaged_spec(packed):
    parts, spec, _ = packed
    with pytest.raises(KernelError, match="Not a kernel ladder"):
        ops.linear(torch.randn(3, 12), None, parts, spec[:-9], 8, 12)
