from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import DtypeError
from sparseworks.core.finite import all_finite, require_floating


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_one_bad_number_anywhere_is_seen(dtype):
    x = torch.linspace(-3, 3, 35).reshape(5, 7).to(dtype)
    assert all_finite(x) and all_finite(x[:0])
    for bad in (float("nan"), *(() if dtype == torch.float8_e4m3fn else (float("inf"), -float("inf")))):
        for at in (0, 17, 34):
            y = x.float()
            y.view(-1)[at] = bad
            assert not all_finite(y.to(dtype)), (bad, at)


def test_numbers_that_are_never_infinite():
    assert all_finite(torch.arange(3)) and all_finite(torch.tensor([True]))
    assert not all_finite(torch.tensor([complex(0, float("nan"))]))


def test_what_is_no_floating_number_or_of_two_kinds_is_refused():
    require_floating("Data", torch.ones(2), torch.ones(3))
    for given in ((torch.ones(2, dtype=torch.long),), (torch.ones(2), torch.ones(2).double()), (torch.ones(2).half(),)):
        with pytest.raises(DtypeError, match="Data"):
            require_floating("Data", *given)
