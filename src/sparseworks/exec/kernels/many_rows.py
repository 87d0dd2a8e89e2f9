"""Own product with dense int8 weights for many rows of x: whole numbers throughout, scaled at the end."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from sparseworks.exec.format import Packed
from sparseworks.exec.kernel import KERNELS
from sparseworks.exec.kernels.cpu import Arguments, NativeKernel, part, rounded_rows, scale_address

_MOST_INT16, _MOST_INT32 = (1 << 15) - 1, (1 << 31) - 1
_AT_ONCE = 256  # rows of weights whose sums are taken in wider numbers


class Int8Kernel(NativeKernel):
    """y_mn = scale_n most_m / limit * sum_k w_nk round(limit x_mk / most_m) + bias_n, most_m = max_k |x_mk|; any support.

    `limit` is the largest whole number of 16 bits with which no sum leaves 32 bits: 15 bits for rows of a few hundred weights, 13 or
    14 for 4096, so next to the rounding of the weights that of x does not show. A row with an infinity or NaN gives NaN throughout.
    """

    format = "dense"
    entry = "int8"
    rate = 2.0

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        weight = part(packed, "weight", self.value_dtype, out, width)
        return width, out, weight.data_ptr(), scale_address(packed), _limit(weight)

    def reference(
        self, x: Float[Tensor, "rows in"], packed: Packed, bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "rows out"]:
        """See `Kernel.reference`; with the inputs rounded as the kernel rounds them."""
        return super().reference(rounded_rows(x, _limit(packed.parts["weight"])), packed, bias)


def _limit(weight: Int8[Tensor, "out in"]) -> int:
    """min(2^15 - 1, (2^31 - 1) / max_n sum_k |w_nk|)."""
    longest = (int(rows.int().abs().sum(dim=1).max()) for rows in weight.split(_AT_ONCE) if rows.numel())
    return min(_MOST_INT16, _MOST_INT32 // max(1, *longest, 1))


KERNELS.register("gemm-int8")(Int8Kernel("gemm-int8", torch.int8))
