from __future__ import annotations

import importlib

import pytest
import torch

from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, DtypeError, KernelError, NonFiniteError, ShapeError
from sparseworks.exec.codes import decode, encode_topk
from sparseworks.exec.native import features

DECODE, ENCODE = (importlib.import_module(f"sparseworks.exec.codes.{name}") for name in ("decode", "encode"))


@pytest.fixture(params=["reference", *features()["built"]])
def kernels(request, monkeypatch, running):
    """The reference, and the compiled kernels of every instruction set."""
    if request.param == "reference":
        monkeypatch.setattr(DECODE, "native", lambda: None)
        monkeypatch.setattr(ENCODE, "native", lambda: None)
        yield
        return
    with running(request.param):
        yield


def whole(*shape, seed=0):
    """Small whole numbers: products are exact in any order, and ties are common."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("rows", "features", "latents", "k"), [
    (0, 3, 5, 2), (1, 1, 1, 1), (7, 5, 13, 13), (3, 4, 6, 0), (300, 8, 2200, 20), (5, 0, 9, 3), (4, 6, 1031, 600), (3, 6, 4200, 2500),
])  # fmt: skip
def test_encode_is_the_exact_top_k_with_ties_to_the_lower_latent(kernels, rows, features, latents, k, relu):
    x, w, b = whole(rows, features), whole(latents, features, seed=1), whole(latents, seed=2)
    z = x @ w.T + b
    z = z.relu() if relu else z
    order = z.argsort(dim=1, descending=True, stable=True)[:, :k]
    codes = encode_topk(x, w, b, k, relu)
    assert (
        torch.equal(codes.indices, order) and torch.equal(codes.values, z.gather(1, order)) and codes.width == latents
    )
    assert torch.equal(encode_topk(x, w, None, k, relu).values, encode_topk(x, w, torch.zeros(latents), k, relu).values)


def test_the_best_are_found_wherever_they_lie(kernels):
    """Rising, falling and mixed rows: all are gathered, none after the first k, some."""
    n, k = 5000, 40
    rising = torch.arange(n, dtype=torch.float32) - 2500
    mixed = torch.randn(n, generator=torch.Generator().manual_seed(0))
    w = torch.stack([rising, rising.flip(0), mixed, -torch.zeros(n)], 1)
    codes = encode_topk(torch.eye(4), w, None, k, relu=False)
    want = w.T.argsort(dim=1, descending=True, stable=True)[:, :k]
    assert torch.equal(codes.indices, want) and torch.equal(codes.values, w.T.gather(1, want))


@pytest.mark.parametrize("relu", [True, False])
def test_encode_gradients(kernels, relu):
    x, w, b = (whole(*s, seed=i).requires_grad_() for i, s in enumerate([(9, 5), (40, 5), (40,)]))
    codes = encode_topk(x, w, b, 30, relu)
    weights = whole(9, 30, seed=7)
    found = torch.autograd.grad((codes.values * weights).sum(), (x, w, b))
    z = x @ w.T + b
    z = z.relu() if relu else z
    want = torch.autograd.grad((z.gather(1, codes.indices) * weights).sum(), (x, w, b))
    for a, c in zip(found, want, strict=True):
        torch.testing.assert_close(a, c)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("rows", "k", "width", "features"), [
    (0, 2, 4, 3), (1, 1, 1, 1), (5, 0, 4, 7), (6, 3, 3, 0), (17, 5, 31, 8), (4, 7, 50, 203), (3, 9, 20, 96),
])  # fmt: skip
def test_decode_and_gradients_equal_the_dense_product(kernels, rows, k, width, features, dtype):
    g = torch.Generator().manual_seed(0)
    indices = torch.rand(rows, width, generator=g).argsort(dim=1)[:, :k].to(dtype)
    values, d, b = (
        whole(*s, seed=i).requires_grad_() for i, s in enumerate([(rows, k), (width, features), (features,)])
    )
    codes = Codes(values, indices, width)
    for bias in (b, None):
        y, want = decode(codes, d, bias), codes.dense() @ d + (0 if bias is None else bias)
        assert torch.equal(y, want)
    seen = whole(rows, features, seed=5)
    found = torch.autograd.grad((decode(codes, d, b) * seen).sum(), (values, d, b))
    expected = torch.autograd.grad(((codes.dense() @ d + b) * seen).sum(), (values, d, b))
    assert all(torch.equal(a, c) for a, c in zip(found, expected, strict=True))


def test_float64_gradients_by_differences():
    indices = torch.tensor([[0, 2], [1, 0]])
    values, d, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in [(2, 2), (3, 4), (4,)])
    assert torch.autograd.gradcheck(lambda v, d, b: decode(Codes(v, indices, 3), d, b), (values, d, b))


def test_op_passes_torchs_own_check():
    v, d = torch.randn(2, 2, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.sparseworks.decode.default, (v, torch.tensor([[0, 2], [1, 0]]), d, None))


def test_refusals(kernels):
    x, w = torch.ones(2, 3), torch.ones(4, 3)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(NonFiniteError):
            encode_topk(torch.full((2, 3), bad), w, None, 2)
    for place in (
        1,
        100,
        2047,
        2100,
        2199,
    ):  # among the first k, in a vector, at the end of a tile, in the next, behind vectors
        late = torch.ones(2200, 3)
        late[place] = torch.nan
        with pytest.raises(NonFiniteError):
            encode_topk(x, late, None, 2)
    for args in ((x, w, None, 5), (x, w, None, -1)):
        with pytest.raises(BudgetError):
            encode_topk(*args)
    with pytest.raises(ShapeError):
        encode_topk(x, torch.ones(4, 2), None, 1)
    with pytest.raises(ShapeError):
        encode_topk(x, w, torch.ones(3), 1)
    with pytest.raises(DtypeError):
        encode_topk(x, w.double(), None, 1)
    codes = encode_topk(x, w, None, 2)
    with pytest.raises(ShapeError):
        decode(codes, torch.ones(3, 3))
    with pytest.raises(ShapeError):
        decode(codes, w, torch.ones(2))
    with pytest.raises(DtypeError):
        decode(codes, w.double())
    codes.indices[0, 0] = 4
    with pytest.raises(KernelError):
        decode(codes, w)
