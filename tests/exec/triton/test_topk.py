from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.exec.triton.select import MOST
from sparseworks.exec.triton.topk import topk_encode

MANY = (
    33 if torch.cuda.is_available() else 4
)  # a program each: on a GPU they run beside one another, in the interpreter in turn


def reference(x, weight, bias, k: int):
    """Stable sort of the sums, rounded to the type of x."""
    s = (x.float() @ weight.float().T + (0.0 if bias is None else bias.float())).to(x.dtype).float()
    values, indices = s.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def whole(*shape: int, device: str, dtype=torch.float32, most: int = 3) -> torch.Tensor:
    """Small whole numbers: every sum is exact, and many are equal."""
    return torch.randint(-most, most + 1, shape, device=device).to(dtype)


@pytest.mark.parametrize("rows, width, latents, k", [(1, 1, 1, 1), (3, 20, 130, 5), (MANY // 2, 70, 200, 9), (MANY, 16, 257, 8), (2, 8, 40, 40)])  # fmt: skip
def test_values_and_indices_equal_a_stable_sort(rows, width, latents, k, dtype, device):
    x, weight = whole(rows, width, device=device, dtype=dtype), whole(latents, width, device=device, dtype=dtype)
    for bias in (None, whole(latents, device=device, dtype=dtype)):
        values, indices = topk_encode(x, weight, bias, k)
        expected = reference(x, weight, bias, k)
        assert torch.equal(indices, expected[1])
        assert values.dtype is dtype and torch.equal(values, expected[0].to(dtype))


def test_the_most_it_keeps(device):
    x, weight = whole(1, 8, device=device), whole(MOST + 9, 8, device=device)
    assert torch.equal(topk_encode(x, weight, None, MOST)[1], reference(x, weight, None, MOST)[1])


def test_real_numbers(device, close):
    x, weight, bias = (torch.randn(s, device=device) for s in ((5, 96), (300, 96), (300,)))
    values, indices = topk_encode(x, weight, bias, 8)
    close(values, reference(x, weight, bias, 8)[0])
    close(
        values,
        reference(x, weight, bias, 300)[0].gather(1, reference(x, weight, bias, 300)[1].argsort(1)).gather(1, indices),
    )
    assert bool((values.diff(dim=1) <= 0).all())


@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_hard_orders(order, device):
    """Every tile beats the kept ones, none does, or all latents tie."""
    bias = {"ascending": torch.arange(400.0), "descending": -torch.arange(400.0), "equal": torch.zeros(400)}[order].to(
        device
    )
    x, weight = torch.zeros(2, 4, device=device), torch.zeros(400, 4, device=device)
    _, indices = topk_encode(x, weight, bias, 10)
    expected = torch.arange(399, 389, -1) if order == "ascending" else torch.arange(10)
    assert torch.equal(indices.cpu(), expected.expand(2, 10))


def test_relu_comes_first(device):
    """Fewer positive latents than k: zeros follow, the first of them."""
    x, weight = torch.ones(1, 1, device=device), torch.tensor([-1.0, 3.0, -2.0, 0.0, 2.0], device=device)[:, None]
    values, indices = topk_encode(x, weight, None, 4, relu=True)
    assert values.tolist() == [[3.0, 2.0, 0.0, 0.0]] and indices.tolist() == [[1, 4, 0, 2]]


def test_latents_take_bounded_memory(device, monkeypatch):
    taken = []

    def seen(latents, k):
        taken.append(len(latents))
        return latents.sort(dim=1, descending=True, stable=True)[0][:, :k], latents.argsort(
            dim=1, descending=True, stable=True
        )[:, :k]

    monkeypatch.setattr("sparseworks.exec.triton.topk.largest", seen)
    monkeypatch.setattr("sparseworks.exec.triton.topk._BYTES", 4 * 128 * 50)
    x, weight = whole(300, 5, device=device), whole(50, 5, device=device)
    values, indices = topk_encode(x, weight, None, 3)
    expected = reference(x, weight, None, 3)
    assert taken == [128, 128, 44]
    assert torch.equal(indices, expected[1]) and torch.equal(values, expected[0])


@settings(max_examples=8)
@given(st.integers(1, 2), st.integers(1, 12), st.integers(1, 150), st.data())
def test_any_size(rows, width, latents, data):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    k = data.draw(st.integers(0, min(latents, 20)))
    x, weight = whole(rows, width, device=device, most=1), whole(latents, width, device=device, most=1)
    values, indices = topk_encode(x, weight, None, k)
    expected = reference(x, weight, None, k)
    assert torch.equal(indices, expected[1]) and torch.equal(values, expected[0])


def test_refusals(device):
    x, weight = torch.zeros(2, 8, device=device), torch.zeros(600, 8, device=device)
    with pytest.raises(KernelError, match="at most 512"):
        topk_encode(x, weight, None, 513)
    with pytest.raises(ShapeError, match="between 0 and all 600"):
        topk_encode(x, weight, None, 601)
    with pytest.raises(ShapeError, match="takes a weight"):
        topk_encode(x, weight[:, :4].contiguous(), None, 2)
    assert topk_encode(x[:0], weight, None, 3)[0].shape == (0, 3)
