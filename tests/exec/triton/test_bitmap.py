from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sparseworks.core.errors import KernelError
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Packed
from sparseworks.exec.triton.bitmap import MOST_ROWS, bitmap_linear

CASES = [((1, 1), 1.0), ((5, 31), 0.5), ((17, 70), 0.5), ((9, 64), 0.0), ((9, 40), 1.0), ((2, 1100), 0.3)]


def packed(support: Support, dtype: torch.dtype, device: str, seed: int = 0) -> Packed:
    weight = torch.randn(support.shape, generator=torch.Generator().manual_seed(seed))
    weight = weight.where(support.mask(), torch.tensor(float("nan")))  # nobody may look here
    return FORMATS.get("bitmask").pack(weight, support, dtype=dtype).to(device)


def product(x: torch.Tensor, form: Packed, bias: torch.Tensor | None = None) -> torch.Tensor:
    return bitmap_linear(x, form.parts["bits"], form.parts["values"], form.parts["ptr"], bias)


def expected(x: torch.Tensor, form: Packed, bias: torch.Tensor | None = None) -> torch.Tensor:
    weight = FORMATS.get("bitmask").unpack(form.to("cpu"))[0]
    y = F.linear(x.cpu().double(), weight.double())
    return (y if bias is None else y + bias.cpu().double()).to(x.dtype)


@pytest.mark.parametrize("shape, density", CASES)
def test_equals_the_dense_product(shape, density, dtype, device, close):
    form = packed(Support.from_mask(torch.rand(shape) < density), dtype, device)
    bias = torch.randn(shape[0], device=device).to(dtype)
    for rows, b in ((0, bias), (1, bias), (2, None), (17, bias)):
        x = torch.randn(rows, shape[1], device=device).to(dtype)
        close(product(x, form, b), expected(x, form, b))


def test_more_rows_than_one_tile_takes(device, close):
    form = packed(Support.from_mask(torch.rand(20, 40) < 0.5), torch.float32, device)
    x = torch.randn(MOST_ROWS + 3, 40, device=device)
    close(product(x, form), expected(x, form))


def test_empty_rows_keep_their_neighbours_in_place(device, close):
    mask = torch.rand(9, 130) < 0.5
    mask[::3] = False
    form = packed(Support.from_mask(mask), torch.float32, device)
    for rows in (1, 4):
        x = torch.randn(rows, 130, device=device)
        y = product(x, form)
        close(y, expected(x, form))
        assert not y[:, ::3].any()


def test_float32_inputs_of_half_precision_weights_are_not_rounded(device, close):
    form = packed(Support.from_mask(torch.rand(33, 65) < 0.5), torch.bfloat16, device)
    for rows in (1, 5):
        x = torch.randn(rows, 65, device=device)
        close(product(x, form), expected(x, form))


def test_refuses_what_it_cannot_follow(device):
    form = packed(Support.full((8, 64)), torch.float32, device)
    with pytest.raises(KernelError, match="contiguous"):
        product(torch.zeros(64, 2, device=device).T, form)
