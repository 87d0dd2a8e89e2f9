"""The kernel of sparse convolutions, as the planner knows it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import KernelError
from sparseworks.exec.conv.layer import FORMAT, KERNEL, SparseConv2d
from sparseworks.exec.format import Packed
from sparseworks.exec.kernel import KERNELS, Call, Kernel
from sparseworks.exec.kernels.cpu import facts
from sparseworks.exec.ladder import DENSE
from sparseworks.exec.native import why_missing


class TapsKernel(Kernel):
    """y = conv2d(x, W) + b on maps as they lie; `SparseConv2d` runs it."""

    name, format, of_maps = KERNEL, FORMAT, True

    def refuses(self, call: Call) -> str | None:
        """Rows, maps of unknown size, another device or type, or no extension."""
        if call.maps is None:
            return "it reads the maps of a convolution, of a size that examples tell"
        if call.device != "cpu" or call.dtype is not torch.float32:
            return f"it takes float32 on the CPU, not {str(call.dtype).removeprefix('torch.')} on {call.device}"
        return why_missing()

    def __call__(
        self, x: Float[Tensor, "n in height width"], packed: Packed, bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "n out high wide"]:
        """conv2d(x, W) + bias with the window of the packed form.

        Raises:
            KernelError: damaged buffers, or maps that they do not fit.
        """
        layer = SparseConv2d.from_packed(packed, bias)
        if x.dim() != 4 or x.shape[1] != layer.in_channels:
            raise KernelError(f"Kernel {self.name!r} takes maps of {layer.in_channels} channels, got {facts(x)}.")
        return layer(x)

    def reference(
        self, x: Float[Tensor, "n in height width"], packed: Packed, bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "n out high wide"]:
        """The same by torch, with the unpacked weight."""
        return SparseConv2d.from_packed(packed, bias, [(0, DENSE)])(x)


KERNELS.register(TapsKernel.name)(TapsKernel())
