"""Kernels written once over vectors of any width, called by their raw binding: every instruction set gives the same product."""

from __future__ import annotations

import pytest
import torch

from sparseworks.exec.native import native

pytestmark = pytest.mark.skipif(native() is None, reason="the compiled extension is not built")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_dense_rows(every_isa, dtype, threads):
    """y = scale * (x W^T) + bias; widths below, at and above 4, 8 and 16 lanes, tensors that end where the matrix ends."""
    stored = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}[dtype]
    for rows, width, out in [
        (1, 1, 1),
        (2, 3, 7),
        (1, 4, 8),
        (3, 8, 9),
        (2, 15, 16),
        (1, 16, 17),
        (2, 37, 40),
        (3, 300, 101),
    ]:
        weight = (torch.randn(out, width) * 30).to(dtype)
        x, bias, scale = torch.randn(rows, width), torch.randn(out), torch.rand(out) + 0.5
        y = torch.full((rows, out), float("nan"))
        pointers = [x.data_ptr(), y.data_ptr(), bias.data_ptr()]
        scales = scale.data_ptr() if dtype is torch.int8 else 0
        native().gemv(*pointers, rows, threads, width, out, stored, weight.data_ptr(), scales)
        expected = x.double() @ weight.double().T * (scale if scales else 1.0) + bias
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-3 * width**0.5)
