from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sparseworks.core.errors import KernelError
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Packed
from sparseworks.exec.triton.csr import csr_linear

CASES = [((1, 1), 1.0), ((5, 31), 0.5), ((17, 70), 0.2), ((9, 64), 0.0), ((9, 40), 1.0), ((3, 5000), 0.3)]


def packed(support: Support, dtype: torch.dtype, device: str) -> Packed:
    weight = torch.randn(support.shape, generator=torch.Generator().manual_seed(0))
    weight = weight.where(support.mask(), torch.tensor(float("nan")))  # nobody may look here
    return FORMATS.get("csr16").pack(weight, support, dtype=dtype).to(device)


def product(x: torch.Tensor, form: Packed, bias: torch.Tensor | None = None) -> torch.Tensor:
    return csr_linear(x, form.parts["columns"], form.parts["values"], form.parts["ptr"], bias)


def expected(x: torch.Tensor, form: Packed, bias: torch.Tensor | None = None) -> torch.Tensor:
    weight = FORMATS.get("csr16").unpack(form.to("cpu"))[0]
    y = F.linear(x.cpu().double(), weight.double())
    return (y if bias is None else y + bias.cpu().double()).to(x.dtype)


@pytest.mark.parametrize("shape, density", CASES)
def test_equals_the_dense_product(shape, density, dtype, device, close):
    form = packed(Support.from_mask(torch.rand(shape) < density), dtype, device)
    bias = torch.randn(shape[0], device=device).to(dtype)
    for rows, b in ((0, bias), (1, bias), (2, None), (5, bias)):
        x = torch.randn(rows, shape[1], device=device).to(dtype)
        close(product(x, form, b), expected(x, form, b))


def test_columns_beyond_32767_are_not_negative(device, close):
    mask = torch.zeros(2, 65536, dtype=torch.bool)
    mask[0, -3:] = mask[1, 40000:40009] = True
    form = packed(Support.from_mask(mask), torch.float32, device)
    for rows in (1, 9):  # one row is too long for shared memory, nine are two launches
        x = torch.randn(rows, 65536, device=device)
        close(product(x, form), expected(x, form))


def test_rows_of_very_different_lengths(device, close):
    mask = torch.rand(9, 3000) < torch.tensor([0.0, 1.0, 0.01] * 3)[:, None]
    form = packed(Support.from_mask(mask), torch.float32, device)
    x = torch.randn(2, 3000, device=device)
    y = product(x, form)
    close(y, expected(x, form))
    assert not y[:, ::3].any()


def test_only_kept_entries_are_looked_at(device):
    mask = torch.rand(8, 64) < 0.2
    mask[:, 7] = False
    form = packed(Support.from_mask(mask), torch.float32, device)
    x = torch.randn(1, 64, device=device)
    x[0, 7] = float("nan")
    assert torch.isfinite(product(x, form)).all()


def test_refuses_what_it_cannot_follow(device):
    form = packed(Support.full((8, 64)), torch.float32, device)
    with pytest.raises(KernelError, match="contiguous"):
        product(torch.zeros(64, 2, device=device).T, form)
