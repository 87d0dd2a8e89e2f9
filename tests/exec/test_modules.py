"""SparseLinear as an ordinary module: copied, saved, moved, converted, compiled."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparseworks.core.errors import DtypeError, KernelError, ShapeError, UnknownNameError
from sparseworks.exec import FORMATS, Rung, SparseLinear

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def linear():
    return nn.Linear(12, 8)


@pytest.fixture
def support(random_support):
    return random_support(8, 12, 0.5)


@pytest.fixture
def sparse(linear, support):
    return SparseLinear.from_linear(linear, support, kernel="toy-any")


@pytest.fixture
def two_forms(linear, support):
    toy, dense = (FORMATS.get(f).pack(linear.weight, support) for f in ("toy", "dense"))
    return SparseLinear([Rung(0, "toy-few", toy), Rung(9, "dense", dense)], linear.bias, density=support.density)


def expected(linear, support, x):
    return nn.functional.linear(x, (linear.weight * support.mask()).detach(), linear.bias)


def test_equals_masked_dense(sparse, linear, support):
    for shape in ((12,), (1, 12), (4, 5, 12), (0, 12)):
        x = torch.randn(shape)
        torch.testing.assert_close(sparse(x), expected(linear, support, x))
    assert torch.equal(sparse.weight, sparse.dense_weight())
    assert torch.equal(sparse.dense_weight(), (linear.weight * support.mask()).detach())
    assert sparse.support() == support


def test_planned_when_no_kernel_is_named(clock, linear, support):
    clock.us |= {"toy-any": 20.0}
    assert SparseLinear.from_linear(linear, support, batch=4).rungs == [(0, "toy-any")]
    clock.us |= {"toy-any": 200.0}
    slower = SparseLinear.from_linear(linear, support, batch=5)
    assert slower.rungs == [(0, "dense")] and slower.support() == support


def test_hugging_face_conv1d(random_support):
    layer, support = Conv1D(8, 12), random_support(8, 12, 0.25)
    sparse = SparseLinear.from_linear(layer, support, kernel="toy-any")
    x = torch.randn(3, 12)
    torch.testing.assert_close(sparse(x), x @ (layer.weight * support.mask().T) + layer.bias)


def test_from_packed(linear, support):
    packed = FORMATS.get("toy").pack(linear.weight, support)
    x = torch.randn(3, 12)
    for layer in (
        SparseLinear.from_packed(packed, linear.bias, "toy-any"),
        SparseLinear.from_packed([Rung(0, "toy-few", packed), Rung(2, "toy-any", packed)], linear.bias),
    ):
        torch.testing.assert_close(layer(x), expected(linear, support, x))
        assert layer.density == support.density
    with pytest.raises(KernelError, match="Name the kernel"):
        SparseLinear.from_packed(packed)


def test_bad_arguments(linear, support, random_support):
    packed = FORMATS.get("toy").pack(linear.weight, support)
    with pytest.raises(ShapeError, match="8 outputs cannot take a bias of shape"):
        SparseLinear([Rung(0, "toy-any", packed)], torch.zeros(7), density=0.5)
    with pytest.raises(ShapeError, match="takes 12 features"):
        SparseLinear([Rung(0, "toy-any", packed)], density=0.5)(torch.zeros(2, 11))
    with pytest.raises(UnknownNameError, match="kernel"):
        SparseLinear.from_linear(linear, support, kernel="fastest")
    with pytest.raises(ShapeError):
        SparseLinear.from_linear(linear, random_support(8, 10, 0.5), kernel="toy-any")


def test_dense_rungs_are_torchs_own_product(two_forms, linear, support, monkeypatch):
    """No registered op, no ladder: what is dense must cost what dense costs."""
    import sparseworks.exec.modules as module

    asked = []
    real = module.linear_op
    monkeypatch.setattr(module, "linear_op", lambda *a: asked.append(1) or real(*a))
    for rows, through_op in ((8, True), (9, False), (100, False)):
        asked.clear()
        x = torch.randn(rows, 12)
        torch.testing.assert_close(two_forms(x), expected(linear, support, x))
        assert bool(asked) == through_op
    for x in (torch.randn(9, 12).double(), torch.randn(9, 12).bfloat16()):
        assert two_forms(x).dtype == x.dtype
    assert two_forms.half()(torch.randn(9, 12)).dtype == torch.float32
    with pytest.raises(ShapeError, match="takes 12 features"):
        two_forms(torch.randn(24, 6))
    for rows in (8, 9):
        with pytest.raises(DtypeError, match="floating point"):
            two_forms(torch.ones(rows, 12, dtype=torch.int32))


def test_deepcopy_is_independent(sparse):
    x = torch.randn(3, 12)
    twin, before = copy.deepcopy(sparse), sparse(x)
    twin.toy_fp32_values.zero_()
    with torch.no_grad():
        twin.bias.zero_()
    assert torch.equal(sparse(x), before) and not twin(x).any()


def test_metadata_and_state_dict_bring_the_layer_back(two_forms, tmp_path):
    from safetensors.torch import load_file, save_file

    text = json.dumps(two_forms.metadata())
    save_file(two_forms.state_dict(), tmp_path / "layer.safetensors")
    again = SparseLinear.from_metadata(json.loads(text))
    again.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    for rows in (1, 20):
        x = torch.randn(rows, 12)
        assert torch.equal(again(x), two_forms(x))
    assert (again.rungs, again.density, again.metadata()) == (two_forms.rungs, two_forms.density, two_forms.metadata())
    assert again.support() == two_forms.support()


@pytest.mark.parametrize("lost", ["shape", "forms", "rungs", "bias", "density"])
def test_metadata_with_something_missing(sparse, lost):
    meta = sparse.metadata()
    del meta[lost]
    with pytest.raises(KernelError, match="Not the metadata of a SparseLinear"):
        SparseLinear.from_metadata(meta)


def test_state_dict_of_another_layer_is_refused(sparse, linear, random_support):
    other = SparseLinear.from_linear(linear, random_support(8, 12, 0.25), kernel="toy-any")
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(sparse.state_dict())


@pytest.mark.parametrize("convert", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()])
def test_conversion_leaves_packed_parts_alone(sparse, linear, support, convert):
    before = {k: v.clone() for k, v in sparse.named_buffers()}
    sparse = convert(sparse)
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in sparse.named_buffers())
    dtype = sparse.bias.dtype
    x = torch.randn(3, 12, dtype=dtype)
    y = sparse(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected(linear, support, x.float()), rtol=2e-2, atol=2e-2)


def test_to_meta_and_back(sparse):
    assert all(t.is_meta for t in sparse.to("meta").state_dict().values())


def test_threads(sparse):
    x = torch.randn(64, 12)
    one = sparse(x)
    torch.set_num_threads(2)
    torch.testing.assert_close(sparse(x), one)


def test_inference_mode(sparse, linear, support):
    x = torch.randn(3, 12)
    with torch.inference_mode():
        y = sparse(x)
        assert y.is_inference()
        torch.testing.assert_close(y, expected(linear, support, x))


def test_autocast(sparse, linear, support):
    x = torch.randn(3, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse(x)
        assert y.dtype == torch.bfloat16
        assert sparse(x.bfloat16()).dtype == torch.bfloat16
        assert sparse(x.double()).dtype == torch.float64
    torch.testing.assert_close(y.float(), expected(linear, support, x), rtol=2e-2, atol=2e-2)


def test_gradients_reach_input_and_bias(sparse, linear, support):
    x = torch.randn(2, 3, 12, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    sparse(x).square().sum().backward()
    expected(linear, support, twin).square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(sparse.bias.grad, linear.bias.grad)


def test_frozen_bias_stays_frozen(linear, support):
    linear.bias.requires_grad_(False)
    assert not SparseLinear.from_linear(linear, support, kernel="toy-any").bias.requires_grad


def test_only_the_bias_is_a_parameter(sparse, two_forms):
    assert [n for n, _ in sparse.named_parameters()] == ["bias"]
    assert [n for n, _ in sparse.named_buffers()] == ["toy_fp32_values", "toy_fp32_bits"]
    assert sparse.nbytes == sum(b.nbytes for b in sparse.buffers())
    assert two_forms.nbytes > sparse.nbytes


def test_repr_names_format_kernel_and_rows(two_forms):
    text = repr(two_forms)
    for part in ("in_features=12", "out_features=8", "bias=True", "density=0.5", "toy_fp32, dense_fp32"):
        assert part in text
    assert "toy-few, dense from 9 rows" in text


def test_compiled_as_one_graph(two_forms):
    model = nn.Sequential(two_forms, nn.ReLU(), nn.Linear(8, 4))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for rows in (3, 20):
        x = torch.randn(rows, 12, requires_grad=True)
        torch.testing.assert_close(compiled(x), model(x))
        (mine,) = torch.autograd.grad(compiled(x).sum(), x)
        (theirs,) = torch.autograd.grad(model(x).sum(), x)
        torch.testing.assert_close(mine, theirs)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_compiled_with_inductor(sparse):
    model = nn.Sequential(sparse)  # alone: a neighbour would be compiled as C++, which takes seconds
    x = torch.randn(3, 12)
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_exported(sparse):
    x = torch.randn(3, 12)
    program = torch.export.export(nn.Sequential(sparse), (x,))
    torch.testing.assert_close(program.module()(x), sparse(x))
