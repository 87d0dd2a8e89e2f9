"""Global selection over many tensors equals sorting their concatenation, without ever concatenating or sorting."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError
from sparseworks.core.select import select_across

quick = settings(deadline=None, max_examples=50)
INF = float("inf")


def by_sorting(tensors: list[torch.Tensor], total: int) -> list[list[bool]]:
    flat = [(float(v), i, j) for i, t in enumerate(tensors) for j, v in enumerate(t.reshape(-1))]
    kept = {(i, j) for _, i, j in sorted(flat, key=lambda e: (-e[0], e[1], e[2]))[:total]}
    return [[(i, j) in kept for j in range(t.numel())] for i, t in enumerate(tensors)]


def check(tensors: list[torch.Tensor], total: int) -> None:
    masks = select_across(tensors, total)
    assert [m.reshape(-1).tolist() for m in masks] == by_sorting(tensors, total)
    assert all(m.shape == t.shape for m, t in zip(masks, tensors, strict=True))


any_float = st.floats(allow_nan=False, width=32)
tied = st.sampled_from([-INF, -2.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3e38, INF])


@quick
@given(values=st.lists(st.lists(any_float | tied, max_size=12), min_size=1, max_size=5), share=st.floats(0, 1))
def test_equals_a_sort_of_everything_in_fp32(values, share):
    check([torch.tensor(v, dtype=torch.float32) for v in values], round(share * sum(map(len, values))))


@quick
@given(
    values=st.lists(st.lists(st.floats(allow_nan=False), max_size=12), min_size=1, max_size=4), share=st.floats(0, 1)
)
def test_equals_a_sort_of_everything_in_fp64(values, share):
    check([torch.tensor(v, dtype=torch.float64) for v in values], round(share * sum(map(len, values))))


def test_fp64_differences_below_fp32_are_seen():
    a, b = torch.tensor([1.0 + 1e-15], dtype=torch.float64), torch.tensor([1.0 + 2e-15], dtype=torch.float64)
    assert [m.tolist() for m in select_across([a, b], 1)] == [[False], [True]]


def test_neighbouring_floats_across_every_byte_boundary():
    bits = [0x00000000, 0x00000001, 0x0000FFFF, 0x00010000, 0x3F7FFFFF, 0x3F800000, 0x7F7FFFFF, 0x7F800000]
    values = [struct.unpack("f", struct.pack("I", b))[0] for b in bits]
    values += [-v for v in values]
    for total in range(len(values) + 1):
        check([torch.tensor(values[::2]), torch.tensor(values[1::2])], total)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.uint8, torch.bool], ids=str
)
def test_other_types(dtype):
    g = torch.Generator().manual_seed(0)
    tensors = [
        torch.randint(0, 2 if dtype == torch.bool else 5, s, generator=g).to(dtype) for s in ((3, 4), (7,), (2, 2, 2))
    ]
    for total in (0, 1, 9, 27):
        check(tensors, total)


def test_mixed_types_are_compared_as_numbers():
    check(
        [torch.tensor([1.5, -2.0]), torch.tensor([1.5], dtype=torch.float64), torch.tensor([1], dtype=torch.int32)], 2
    )


def test_signed_zeros_tie():
    masks = select_across([torch.tensor([-0.0, 0.0]), torch.tensor([0.0, -0.0])], 3)
    assert [m.tolist() for m in masks] == [[True, True], [True, False]]


def test_no_sort_of_everything_and_no_concatenation(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a global selection must neither sort nor concatenate")

    tensors = [torch.randn(50, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    expected = by_sorting(tensors, 77)
    for name in ("sort", "argsort", "topk", "kthvalue"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
        monkeypatch.setattr(torch, name, refuse)
    for name in ("cat", "concat", "stack"):
        monkeypatch.setattr(torch, name, refuse)
    assert [m.tolist() for m in select_across(tensors, 77)] == expected


def test_empty_tensors_and_extremes():
    tensors = [torch.zeros(0), torch.tensor([1.0, 2.0]), torch.zeros(0, 3)]
    assert [int(m.sum()) for m in select_across(tensors, 0)] == [0, 0, 0]
    assert [int(m.sum()) for m in select_across(tensors, 2)] == [0, 2, 0]
    assert select_across([], 0) == []


def test_refusals():
    with pytest.raises(BudgetError, match="Cannot keep 3 of 2"):
        select_across([torch.zeros(2)], 3)
    with pytest.raises(BudgetError, match="Cannot keep -1"):
        select_across([torch.zeros(2)], -1)
    with pytest.raises(NonFiniteError, match="NaN"):
        select_across([torch.zeros(2), torch.tensor([float("nan")])], 1)
    with pytest.raises(DtypeError, match="order"):
        select_across([torch.zeros(2, dtype=torch.complex64)], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_many_entries_go_by_wider_digits(dtype):
    g = torch.Generator().manual_seed(0)
    tensors = [
        (torch.randn(n, generator=g) * scale).to(dtype) for n, scale in ((40_000, 1.0), (30_000, 1e-3), (5, 1e9))
    ]
    order = torch.cat([t.double() for t in tensors]).argsort(descending=True, stable=True)
    for total in (1, 35_000, 70_004):
        expected = torch.zeros(70_005, dtype=torch.bool)
        expected[order[:total]] = True
        assert torch.equal(torch.cat(select_across(tensors, total)), expected)
