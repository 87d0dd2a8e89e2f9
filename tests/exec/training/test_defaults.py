"""Results do not depend on torch's default type and device: memory that the kernels write to has a type of its own."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from sparseworks.core.support import Support
from sparseworks.exec.codes import BatchCholesky
from sparseworks.exec.training import SparseIndex, TrainableSparseLinear, TrainableSparseMLP, sddmm, spmm


@contextmanager
def default(what: str):
    if what == "meta":
        with torch.device("meta"):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, what))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(
    params=["float64", "meta"]
)  # bfloat16 would overrun the memory, so that a failure would end the process
def other(request):
    return request.param


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("tokens", [7, 600])  # products one by one, and in one pass
def test_of_a_layer(other, tokens):
    support = Support.from_mask(torch.rand(20, 30) < 0.3)
    index, values = SparseIndex.of(support), torch.randn(support.count, requires_grad=True)
    x, g = torch.randn(tokens, 30, requires_grad=True), torch.randn(tokens, 20)

    def run() -> list[torch.Tensor]:
        y = spmm(x, values, None, index)
        return [y.detach(), *torch.autograd.grad(y, (x, values), g), sddmm(g, x, index)]

    expected = run()
    with default(other):
        assert same(run(), expected)


def test_of_an_mlp(other):
    up, down = (Support.from_mask(torch.rand(s) < 0.3) for s in ((50, 30), (30, 50)))
    layers = TrainableSparseLinear.from_support(up), "gelu", TrainableSparseLinear.from_support(down)
    mlp = TrainableSparseMLP(*layers, norm=nn.LayerNorm(30), residual=True)
    x, g = torch.randn(600, 30, requires_grad=True), torch.randn(600, 30)

    def run() -> list[torch.Tensor]:
        y = mlp(x)
        return [y.detach(), *torch.autograd.grad(y, (x, *mlp.parameters()), g)]

    expected = run()
    with default(other):
        assert same(run(), expected)


def test_of_an_index(other):
    cut = SparseIndex.of(Support.from_mask(torch.rand(20, 30) < 0.3)).forward
    rows, order = cut.in_row_order()
    with default(other):
        again, place = cut.in_row_order()
    assert same([again.ptr, again.columns, place], [rows.ptr, rows.columns, order])


def test_of_growing_sets_of_atoms(other):
    gram, right, atoms = torch.eye(5) + 0.1, torch.randn(7, 5), torch.zeros(7, dtype=torch.long)

    def run() -> list[torch.Tensor]:
        factors = BatchCholesky(gram, right, 3)
        return [factors.append(atoms), factors.append(atoms + 1), factors.solve()]

    expected = run()
    with default(other):
        assert same(run(), expected)
