from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import CheckpointError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.native import features, native
from sparseworks.exec.training import SparseIndex, sddmm, spmm
from sparseworks.exec.training import products as module

SHAPES = [(1, 1), (3, 7), (65, 193), (300, 130), (17, 1000)]
TOKENS = [0, 1, 8, 15, 33, 64, 65, 200]


def index_of(out: int, width: int, density: float = 0.3, seed: int = 0) -> SparseIndex:
    draw = torch.Generator().manual_seed(seed)
    return SparseIndex.of(Support.from_mask(torch.rand(out, width, generator=draw) < density))


@pytest.fixture(params=["reference", *features()["built"]])
def way(request, monkeypatch, running):
    """The dense reference, and the compiled products on every instruction set."""
    if request.param == "reference":
        monkeypatch.setattr(module, "native", lambda: None)
        yield request.param
        return
    with running(request.param):
        yield request.param


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.shape == b.shape and bool(((a - b).abs() <= 2e-5 * (1 + b.abs().max())).all())
        if b.numel()
        else a.shape == b.shape
    )


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_masked_dense_layer_with_its_gradients(way, shape, density):
    index = index_of(*shape, density)
    weight = torch.randn(shape)
    for tokens in TOKENS:
        x, g, bias = torch.randn(tokens, shape[1]), torch.randn(tokens, shape[0]), torch.randn(shape[0])
        ours = [t.clone().requires_grad_() for t in (x, index.gather(weight), bias)]
        theirs = [t.clone().requires_grad_() for t in (x, index.scatter(index.gather(weight)), bias)]
        y, expected = spmm(*ours, index), torch.nn.functional.linear(*theirs)
        assert close(y, expected)
        y.backward(g)
        expected.backward(g)
        assert close(ours[0].grad, theirs[0].grad) and close(ours[2].grad, theirs[2].grad)
        assert close(ours[1].grad, index.gather(theirs[1].grad))
        assert close(sddmm(g, x, index), index.gather(g.T @ x))


@pytest.mark.parametrize("positions", [1, 7, 64, 90])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_maps_equal_a_matrix_of_their_positions(way, images, positions):
    index = index_of(40, 30)
    maps, g = torch.randn(images, 30, positions), torch.randn(images, 40, positions)
    values, bias = torch.randn(index.count), torch.randn(40)
    ours = [t.clone().requires_grad_() for t in (maps, values, bias)]
    theirs = [t.clone().requires_grad_() for t in (maps, values, bias)]
    y = spmm(*ours, index)
    flat = spmm(theirs[0].movedim(1, 2).reshape(-1, 30), *theirs[1:], index)
    expected = flat.reshape(images, positions, 40).movedim(2, 1)
    assert close(y, expected)
    y.backward(g)
    expected.backward(g)
    assert all(close(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_gradients_by_finite_differences():
    index = index_of(6, 9)
    x, values, bias = torch.randn(5, 9), torch.randn(index.count), torch.randn(6)
    inputs = tuple(t.double().requires_grad_() for t in (x, values, bias))
    assert torch.autograd.gradcheck(lambda x, v, b: spmm(x, v, b, index), inputs)


def test_only_what_is_asked_for_is_computed(way, monkeypatch):
    index = index_of(20, 30)
    x, values = torch.randn(4, 30), torch.randn(index.count, requires_grad=True)
    spmm(x, values, None, index).sum().backward()
    assert x.grad is None and values.grad is not None
    frozen, x = values.detach(), x.requires_grad_()
    spmm(x, frozen, None, index).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_on_any_number_of_threads(threads):
    index = index_of(500, 400)
    x, values = torch.randn(150, 400), torch.randn(index.count)
    before = torch.get_num_threads()
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        v = values.clone().requires_grad_()
        y = spmm(x, v, None, index)
        y.square().sum().backward()
        results.append((y.detach(), v.grad))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_non_contiguous_inputs(way):
    index = index_of(20, 30)
    x, values = torch.randn(30, 8).T, torch.randn(2 * index.count)[::2]
    assert close(spmm(x, values, None, index), x @ index.scatter(values).T)


def test_under_autocast_the_output_has_its_type():
    index = index_of(20, 30)
    x, values = torch.randn(4, 30), torch.randn(index.count, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = spmm(x.bfloat16(), values, None, index)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert values.grad is not None and values.grad.dtype is torch.float32


def test_wrong_sizes_are_refused(way):
    index = index_of(20, 30)
    x, values = torch.randn(4, 30), torch.randn(index.count)
    for wrong in (
        lambda: spmm(x[:, 1:], values, None, index),
        lambda: spmm(x[0], values, None, index),
        lambda: spmm(x, values[1:], None, index),
        lambda: spmm(x, values, torch.zeros(19), index),
        lambda: sddmm(torch.randn(3, 20), x, index),
        lambda: sddmm(torch.randn(4, 19), x, index),
    ):
        with pytest.raises(ShapeError):
            wrong()


@pytest.mark.skipif(native() is None, reason="the compiled extension is not built")
def test_a_damaged_index_is_not_followed():
    index = index_of(20, 30)
    index.forward.columns.fill_(191)
    with pytest.raises(CheckpointError):
        spmm(torch.randn(4, 30), torch.randn(index.count), None, index)


@pytest.mark.skipif(native() is None, reason="the compiled extension is not built")
def test_no_dense_weight_and_no_dense_gradient_is_formed(monkeypatch):
    def forbidden(*_):
        raise AssertionError("a dense matrix was formed")

    index = index_of(50, 60)
    values, x = torch.randn(index.count, requires_grad=True), torch.randn(9, 60, requires_grad=True)
    monkeypatch.setattr(SparseIndex, "scatter", forbidden)
    monkeypatch.setattr(module, "_dense", forbidden)
    monkeypatch.setattr(module, "_sample_dense", forbidden)
    spmm(x, values, None, index).sum().backward()
    assert values.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_bias_of_another_type_changes_nothing_else(way, dtype):
    index = index_of(20, 30)
    x, values, g = torch.randn(5, 30), torch.randn(index.count, requires_grad=True), torch.randn(5, 20)
    bias = torch.randn(20).to(dtype).requires_grad_()
    y = spmm(x, values, bias, index)
    y.backward(g)
    assert y.dtype is torch.float32 and bias.grad.dtype is dtype
    assert close(y.detach(), x @ index.scatter(values.detach()).T + bias.detach().float())
    assert close(values.grad, index.gather(g.T @ x))
