"""The tensor-core product that all kernels use."""

from __future__ import annotations

import triton
import triton.language as tl

from sparseworks.exec.triton.launch import INTERPRETED

_WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def multiply(a: tl.tensor, b: tl.tensor, total: tl.tensor) -> tl.tensor:
    """total + a b with sums in float32; float32 operands are split into three TF32 products, which keeps their precision. Triton's interpreter multiplies the bit patterns of
    bfloat16 as if they were whole numbers, so there operands are widened first, which changes no product."""
    if _WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="tf32x3")
