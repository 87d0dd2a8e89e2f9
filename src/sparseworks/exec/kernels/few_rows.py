"""Own products with dense weights for few rows of x, in either order: bound by reading the weights once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import KernelError
from sparseworks.exec.format import Packed, damaged
from sparseworks.exec.formats.bitmask import OVERREAD
from sparseworks.exec.kernel import KERNELS, Call
from sparseworks.exec.kernels.cpu import Arguments, NativeKernel, part, pointers, population, scale_address

MOST_ROWS = 8
_STORED = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class _FewRows(NativeKernel):
    def refuses(self, call: Call) -> str | None:
        """See `NativeKernel.refuses`; also more rows than the weights should be read for."""
        if call.rows > MOST_ROWS:
            return f"it reads the weights once per row, so it takes up to {MOST_ROWS} rows, not {call.rows}"
        return super().refuses(call)


class GemvKernel(_FewRows):
    """Any support, as a dense matrix: eight rows of W are read side by side, in float32, bfloat16 or int8."""

    format = "dense"
    entry = "gemv"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        weight = part(packed, "weight", self.value_dtype, out, width)
        return width, out, _STORED[self.value_dtype], weight.data_ptr(), scale_address(packed)


class SkippingKernel(_FewRows):
    """Weights stored by input: those of inputs that are zero, or at most a threshold, are not read.

    An infinity or NaN in a weight does not reach y where its input is skipped. The last argument that `inspect` gives is the address of
    the thresholds, none.
    """

    def skipping(
        self,
        x: Float[Tensor, "rows in"],
        packed: Packed,
        bias: Float[Tensor, " out"] | None,
        threshold: Float[Tensor, " rows"],
    ) -> Float[Tensor, "rows out"]:
        """y_n = sum over |x_nk| > threshold_n of x_nk w_k + bias: the weights of other inputs are not read.

        Raises:
            KernelError: input, bias, thresholds or buffers that the kernel cannot read.
        """
        fits = threshold.dtype is torch.float32 and threshold.shape == x.shape[:1]
        if not (fits and threshold.is_contiguous() and threshold.is_cpu):
            got = f"{threshold.dtype} of shape {tuple(threshold.shape)}"
            raise KernelError(f"Kernel {self.name!r} takes a contiguous float32 threshold per row of x, got {got}.")
        return self.multiply(x, packed, bias, (threshold.data_ptr(),))


class InputMajorKernel(SkippingKernel):
    """Any support, as a dense matrix."""

    format = "inmajor"
    entry = "inmajor"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        weight = part(packed, "weight", self.value_dtype, width, out)
        return width, out, _STORED[self.value_dtype], weight.data_ptr(), scale_address(packed), 0


class InputBitsKernel(SkippingKernel):
    """Any support, as the kept weights of each input and one bit per output: zeros are not read either."""

    format = "inbits"
    entry = "inbits"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        bits = part(packed, "bits", torch.uint8, width, -(-out // 8))
        values = part(packed, "values", self.value_dtype, None)
        ptr = pointers(packed, width, values.numel() - OVERREAD)
        if not torch.equal(population(bits), ptr.diff().long()):
            raise damaged(packed, "'ptr' does not count the bits of each input")
        arrays = (ptr.data_ptr(), bits.data_ptr(), values.data_ptr())
        return width, out, _STORED[self.value_dtype], *arrays, scale_address(packed), 0


for _suffix, _dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.int8)):
    KERNELS.register(f"gemv-{_suffix}")(GemvKernel(f"gemv-{_suffix}", _dtype))
    KERNELS.register(f"inmajor-{_suffix}")(InputMajorKernel(f"inmajor-{_suffix}", _dtype))
    KERNELS.register(f"inbits-{_suffix}")(InputBitsKernel(f"inbits-{_suffix}", _dtype))
