from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.exec.triton.select import MOST, largest


def check(x: torch.Tensor, k: int) -> None:
    values, indices = largest(x, k)
    expected = (x.float() + 0.0).sort(dim=1, descending=True, stable=True)
    assert torch.equal(indices.long(), expected.indices[:, :k])
    assert values.dtype is x.dtype and torch.equal(values.float(), expected.values[:, :k])


@pytest.mark.parametrize(
    "rows, width, k", [(1, 1, 1), (3, 20, 20), (2, 700, 33), (2, 5000, 7), (1, 600, 512), (2, 40, 0)]
)
def test_equals_a_stable_sort(rows, width, k, dtype, device):
    check(torch.randn(rows, width, device=device).to(dtype), k)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_of_a_row_change_nothing(parts, device, monkeypatch):
    monkeypatch.setattr("sparseworks.exec.triton.select._SHARE", 0.5)
    monkeypatch.setattr("sparseworks.exec.triton.select.splits", lambda _, programs, most: min(parts, int(most)))
    check(torch.randint(-2, 3, (1, 2600), device=device).float(), 17)
    check(torch.randn(2, 2600, device=device), 17)


def test_all_large_entries_in_one_group(device):
    """The bound of the groups' maxima then lets more pass than the list takes."""
    x = torch.randn(1, 4096, device=device)
    x[0, 128:192] += 10 + torch.arange(64, device=device)
    check(x, 16)


@pytest.mark.parametrize("value", [0.0, -1.5])
def test_many_equal_entries(value, device):
    """As after a ReLU: the first of the equals are taken."""
    x = torch.full((2, 3000), value, device=device)
    x[1, 5::300] = 2.0
    check(x, 16)


def test_zeros_of_both_signs_are_equal(device):
    x = torch.zeros(1, 100, device=device)
    x[0, ::2] = -0.0
    assert largest(x, 5)[1].tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("at", [0, 1023, 1500])
def test_a_nan_is_never_lost(at, device):
    x = torch.randn(2, 1700, device=device)
    x[1, at] = float("nan")
    values, indices = largest(x, 6)
    assert values[1].isnan().all() and not indices[1].any()
    assert torch.equal(values[0], x[0].topk(6).values)


@settings(max_examples=10)
@given(st.integers(1, 2), st.integers(1, 300), st.integers(0, 4), st.data())
def test_any_row(rows, width, spread, data):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randint(-spread, spread + 1, (rows, width), generator=generator).float().to(device)
    check(x, data.draw(st.integers(0, min(width, 40))))


def test_refusals(device):
    x = torch.zeros(2, 1000, device=device)
    with pytest.raises(ShapeError, match="between 0 and all 1000"):
        largest(x, 1001)
    with pytest.raises(KernelError, match=f"at most {MOST}"):
        largest(x, MOST + 1)
    with pytest.raises(DtypeError, match="one type"):
        largest(x.long(), 3)
