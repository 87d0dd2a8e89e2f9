from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.exec.triton.columns import column_linear


def case(rows: int, width: int, out: int, share: float, dtype, device):
    x = torch.randn(rows, width, device=device).to(dtype)
    x[:, torch.rand(width) >= share] = 0.0
    return x, torch.randn(width, out, device=device).to(dtype)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rows, width, out", [(1, 1, 1), (1, 300, 70), (3, 130, 257), (8, 600, 64), (0, 20, 20)])
def test_equals_the_dense_product(rows, width, out, share, dtype, device, close):
    x, weight_t = case(rows, width, out, share, dtype, device)
    bias = torch.randn(out, device=device).to(dtype)
    close(column_linear(x, weight_t), (x.double() @ weight_t.double()).to(dtype))
    close(column_linear(x, weight_t, bias), (x.double() @ weight_t.double() + bias.double()).to(dtype))


def test_small_entries_count_as_zero_in_every_row(device, close):
    x, weight_t = case(2, 200, 40, 1.0, torch.float32, device)
    expected = x.where(x.abs() > 0.7, 0.0) @ weight_t
    close(column_linear(x, weight_t, threshold=0.7), expected)
    assert not torch.allclose(expected, x @ weight_t, atol=0.1)


def test_weights_of_inactive_inputs_are_never_read(device):
    x, weight_t = case(2, 300, 50, 0.3, torch.float32, device)
    weight_t[(x == 0).all(0)] = float("nan")
    assert torch.isfinite(column_linear(x, weight_t)).all()


def test_nan_is_active(device):
    x, weight_t = case(1, 50, 8, 0.0, torch.float32, device)
    x[0, 3] = float("nan")
    assert column_linear(x, weight_t).isnan().all()


def test_refusals(device):
    x, weight_t = case(9, 32, 16, 1.0, torch.float32, device)
    with pytest.raises(ShapeError, match="at most 8 rows"):
        column_linear(x, weight_t)
    with pytest.raises(ShapeError, match="input-major"):
        column_linear(x[:2], weight_t.T.contiguous())
    with pytest.raises(DtypeError, match="one type"):
        column_linear(x[:2].half(), weight_t)


@pytest.mark.parametrize("threshold", [-1.0, float("nan")])
def test_no_threshold_reaches_beyond_the_inputs(threshold, device, close):
    x, weight_t = case(1, 50, 24, 0.5, torch.float32, device)
    close(column_linear(x, weight_t, threshold=threshold), x @ weight_t)
