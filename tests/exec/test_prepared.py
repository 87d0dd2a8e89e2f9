"""Prepared calls: they equal the long way, and see everything that may change under them."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from sparseworks.core.errors import KernelError
from sparseworks.core.support import Support
from sparseworks.exec import SparseLinear
from sparseworks.exec.native import native
from sparseworks.exec.prepared import _MOST, unprepared

pytestmark = pytest.mark.skipif(native() is None, reason="prepared calls are those of the extension")


_EXCHANGE = "__dlpack_c_exchange_api__"


@pytest.fixture(params=["exchange", "attributes"], autouse=True)
def reader(request, monkeypatch):
    """Both ways to read tensors: torch from 2.10 on has DLPack's table of functions."""
    if request.param == "attributes":
        monkeypatch.setattr(torch.Tensor, _EXCHANGE, None, raising=False)
    elif getattr(torch.Tensor, _EXCHANGE, None) is None:
        pytest.skip("this torch has no exchange table")


@pytest.fixture
def layer(random_support):
    torch.manual_seed(0)
    linear = nn.Linear(24, 16)
    return SparseLinear.from_linear(linear, random_support(16, 24, 0.25), kernel="csr16-fp32").requires_grad_(False)


@pytest.fixture
def ways(monkeypatch):
    """Counts the calls that went the long way."""
    import sparseworks.exec.modules as modules

    taken, real = [], modules.linear_op
    monkeypatch.setattr(modules, "linear_op", lambda *a: taken.append(1) or real(*a))
    return taken


@pytest.fixture
def forwards(monkeypatch):
    """Counts the calls that came to `forward`."""
    import sparseworks.exec.modules as modules

    seen, real = [], modules.plain
    monkeypatch.setattr(modules, "plain", lambda *a: seen.append(1) or real(*a))
    return seen


def dense(layer, x):
    return nn.functional.linear(x, layer.dense_weight(), layer.bias)


@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (2, 3, 24), (1, 1, 1, 24)])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_equals_dense_without_the_long_way(layer, ways, shape, mode):
    x = torch.randn(shape)
    with mode():
        for _ in range(2):
            torch.testing.assert_close(layer(x), dense(layer, x))
    assert not ways


@pytest.mark.parametrize("shape", [(0, 24), (3, 0, 24)])
def test_nothing_to_multiply_goes_the_long_way(layer, ways, shape):
    assert layer(torch.randn(shape)).shape == (*shape[:-1], 16)
    assert ways


def test_other_inputs_go_the_long_way_and_come_back(layer, ways):
    x = torch.randn(4, 24)
    layer(x)
    for other in (x.double(), x.bfloat16(), torch.randn(24, 4).T):
        torch.testing.assert_close(layer(other), dense(layer, other.float()).to(other.dtype), rtol=1e-2, atol=1e-2)
    assert len(ways) == 3
    layer(x)
    assert len(ways) == 3


def test_a_gradient_is_seen(layer):
    x = torch.randn(4, 24)
    layer(x)
    x.requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dense_weight().sum(0).expand(4, 24))


def test_hooks_and_autocast_are_seen(layer):
    x, seen = torch.randn(4, 24), []
    layer(x)
    layer.register_forward_hook(lambda *_: seen.append(1))
    layer(x)
    assert seen
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16


def test_what_is_prepared_does_not_come_to_forward(layer, forwards):
    x = torch.randn(4, 24)
    ys = [layer(x) for _ in range(3)]
    assert len(forwards) == 1 and torch.equal(ys[0], ys[2]) and ys[1].data_ptr() != ys[2].data_ptr()
    assert torch.equal(layer(x=x), ys[0]) and len(forwards) == 2


HOOKS = {
    "forward": lambda layer, hook: layer.register_forward_hook(hook),
    "pre": lambda layer, hook: layer.register_forward_pre_hook(hook),
    "backward": lambda layer, hook: layer.register_full_backward_hook(hook),
    "backward pre": lambda layer, hook: layer.register_full_backward_pre_hook(hook),
    "all forward": lambda layer, hook: register_module_forward_hook(hook),
    "all pre": lambda layer, hook: register_module_forward_pre_hook(hook),
    "all backward": lambda layer, hook: register_module_full_backward_hook(hook),
    "all backward pre": lambda layer, hook: register_module_full_backward_pre_hook(hook),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_every_kind_lead_to_forward(layer, forwards, kind):
    x, seen = torch.randn(4, 24), []
    y = layer(x)
    handle = HOOKS[kind](layer, lambda *_: seen.append(1))
    try:
        assert torch.equal(layer(x), y) and len(forwards) == 2 and (seen or "backward" in kind)
    finally:
        handle.remove()
    layer(x)
    assert len(forwards) == 2


def test_another_forward_is_called(layer, monkeypatch):
    x = torch.randn(4, 24)
    y = layer(x)
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", lambda x: "of the instance", raising=False)
        assert layer(x) == "of the instance"
    layer.__dict__.pop("forward", None)
    with monkeypatch.context() as patch:
        patch.setattr(SparseLinear, "forward", lambda self, x: "of the class")
        assert layer(x) == "of the class"
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__call__", lambda self, x: "of all modules")
        assert layer(x) == "of all modules"
    assert torch.equal(layer(x), y)
    layer._compiled_call_impl = lambda x: "compiled"
    assert layer(x) == "compiled"


def test_a_subclass_with_another_forward(random_support):
    class Twice(SparseLinear):
        def forward(self, x):
            return 2 * super().forward(x)

    linear = nn.Linear(24, 16)
    layer = Twice.from_packed(SparseLinear.from_linear(linear, random_support(16, 24, 0.25), kernel="csr16-fp32").forms[0],
                              kernel="csr16-fp32")  # fmt: skip
    x = torch.randn(4, 24)
    for _ in range(3):
        torch.testing.assert_close(layer(x), 2 * (x @ layer.dense_weight().T))
    assert layer._calls


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_modes_of_torch_are_seen(layer):
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    x, names = torch.randn(4, 24), []
    y = layer(x)
    with Seen():
        layer(x)
    assert any("sparseworks.linear" in name for name in names)
    torch.testing.assert_close(torch.vmap(layer)(x.unsqueeze(0)), y.unsqueeze(0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert type(layer(x)) is not torch.Tensor
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
    assert torch.equal(traced(2 * x), layer(2 * x))


def test_inputs_that_no_kernel_can_read_are_refused_as_before(layer):
    x = torch.randn(4, 24)
    layer(x)
    for other in (x.to_sparse(), [1.0] * 24, None):
        with pytest.raises(Exception, match=r"."):
            layer(other)
    assert layer(x.to("meta")).is_meta


def _write(layer):
    layer.csr16_fp32_values.mul_(2)


def _replace(layer):
    layer.csr16_fp32_values = layer.csr16_fp32_values * 3


def _data(layer):
    layer.csr16_fp32_values.data = layer.csr16_fp32_values * 3


def _load(layer):
    layer.load_state_dict({k: v * 2 if v.is_floating_point() else v for k, v in layer.state_dict().items()})


def _assign(layer):
    state = {k: v * 2 if v.is_floating_point() else v for k, v in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def _bias(layer):
    layer.bias = nn.Parameter(layer.bias + 1, requires_grad=False)


def _bias_in_place(layer):
    layer.bias.add_(1)


def _bias_data(layer):
    layer.bias.data = layer.bias + 1


def _bias_away(layer):
    layer.bias = None


CHANGES = (_write, _replace, _data, _load, _assign, _bias, _bias_in_place, _bias_data, _bias_away)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_under_it_is_seen(layer, change):
    x = torch.randn(4, 24)
    before = layer(x)
    change(layer)
    torch.testing.assert_close(layer(x), dense(layer, x))
    assert not torch.equal(layer(x), before)


def test_a_bias_cut_short_where_it_lies_is_not_read_beyond_its_end(layer):
    x = torch.randn(4, 24)
    layer(x)
    layer.bias.data = layer.bias.data[:8]
    with pytest.raises((KernelError, RuntimeError)):
        layer(x)


def test_a_bias_of_another_form_at_the_same_place(layer):
    base = torch.randn(32)
    layer.bias.data = base[:16]
    x = torch.randn(4, 24)
    layer(x)
    layer.bias.data = base.view(torch.float64)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.dense_weight(), layer.bias.float()))
    layer.bias.data = base[:16]
    layer(x)
    layer.bias.data = base[::2]
    with pytest.raises(KernelError, match="contiguous"):
        layer(x)


def test_a_bias_of_another_type_goes_the_long_way(layer, ways):
    layer.bias.data = layer.bias.data.double()
    x = torch.randn(4, 24)
    for _ in range(2):
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.dense_weight(), layer.bias.float()))
    assert len(ways) == 2


def test_tensors_made_under_inference_mode(layer, ways):
    with torch.inference_mode():
        other = copy.deepcopy(layer)
        x = torch.randn(4, 24)
        assert other.csr16_fp32_values.is_inference()
        for _ in range(2):
            torch.testing.assert_close(other(x), dense(layer, x))
        other.csr16_fp32_values = other.csr16_fp32_values * 2
        torch.testing.assert_close(other(x), dense(other, x))
    assert not ways  # what was replaced is seen, and prepared anew at once


def test_a_layer_that_is_dropped_leaves_no_memory_behind(layer):
    layer(torch.randn(4, 24))
    seen = weakref.ref(layer.csr16_fp32_values)
    layer._buffers.clear()
    layer._calls.clear()
    assert seen() is None


def test_a_damaged_buffer_raises_and_is_not_followed(layer):
    x = torch.randn(4, 24)
    layer(x)
    layer.csr16_fp32_columns.fill_(24)
    for _ in range(2):
        with pytest.raises(KernelError, match="beyond the matrix"):
            layer(x)


def test_half_and_back_again(layer):
    x = torch.randn(4, 24)
    layer(x)
    layer.half()
    torch.testing.assert_close(layer(x), dense(layer.float(), x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_hold_no_addresses(layer, twin):
    x = torch.randn(4, 24)
    layer(x)
    other = twin(layer)
    assert not other._calls
    other.csr16_fp32_values.zero_()
    torch.testing.assert_close(other(x), layer.bias.expand(4, 16))
    torch.testing.assert_close(layer(x), dense(layer, x))


def test_kernels_of_torch_are_not_prepared(toys, random_support):
    layer = SparseLinear.from_linear(nn.Linear(24, 16), random_support(16, 24, 0.25), kernel="toy-any")
    with torch.no_grad():
        layer(torch.randn(4, 24))
    assert set(layer._calls.values()) == {unprepared}


def test_memory_of_shapes_is_bounded(layer):
    for rows in range(1, 2 * _MOST):
        layer(torch.randn(rows, 24))
    assert len(layer._calls) <= _MOST


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_outputs_has_gradients():
    layer = SparseLinear.from_linear(nn.Linear(5, 0), Support.empty((0, 5)), kernel="csr16-fp32")
    x = torch.randn(3, 5, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(3, 5))
