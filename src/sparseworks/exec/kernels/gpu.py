"""The kernels for NVIDIA GPUs by format. Triton is imported when one of them first runs, never before."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sparseworks.core.errors import KernelError
from sparseworks.exec.format import FLOATS, FORMATS, Packed, name_of
from sparseworks.exec.formats.bsr import SIZES
from sparseworks.exec.kernel import KERNELS, Call
from sparseworks.exec.kernels.cpu import Arguments, CheckedKernel, below, damaged, facts, number, part, pointers
from sparseworks.exec.kernels.sparse import BitmaskKernel, CsrKernel, NMKernel
from sparseworks.exec.triton import why_missing

_COLUMN_ROWS = 8


class GpuKernel(CheckedKernel):
    """A kernel for GPUs: input in the type of its values, output in the type of the input, sums in float32.

    Buffers are inspected on the CPU, once per packed form; then they are followed where they lie.
    """

    def refuses(self, call: Call) -> str | None:
        """Another device or input type, or no Triton."""
        if call.device != "cuda":
            return f"it runs on a GPU, not on {'the CPU' if call.device == 'cpu' else call.device}"
        if call.dtype is not self.value_dtype:
            return f"its values are {name_of(self.value_dtype)}, the input {name_of(call.dtype)}"
        return self.unsupported()

    def unsupported(self) -> str | None:
        """Why it cannot run on this machine, or None."""
        return why_missing()

    def __call__(
        self, x: Float[Tensor, "rows in"], packed: Packed, bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "rows out"]:
        """x W^T + bias.

        Raises:
            KernelError: input, bias or buffers that the kernel cannot read.
        """
        out, width = packed.shape
        if x.dim() != 2 or x.shape[1] != width or x.dtype is not self.value_dtype or not x.is_contiguous():
            raise KernelError(
                f"Kernel {self.name!r} takes a contiguous {name_of(self.value_dtype)} (rows, {width}), got {facts(x)}."
            )
        if bias is not None and not (bias.dtype is x.dtype and bias.shape == (out,) and bias.is_contiguous()):
            raise KernelError(
                f"Kernel {self.name!r} takes a contiguous {name_of(x.dtype)} bias ({out},), got {facts(bias)}."
            )
        arguments = self.arguments(packed)
        if x.shape[0] == 0 or out == 0 or width == 0:
            return x.new_zeros(x.shape[0], out) + (0 if bias is None else bias)
        return self.multiply(x, bias, packed.parts, *arguments)

    def multiply(self, x: Tensor, bias: Tensor | None, parts: Mapping[str, Tensor], *arguments: Any) -> Tensor:
        """x W^T + bias with the checked parts and what `inspect` derived. (What is derived is kept; a part in it would never go.)"""
        raise NotImplementedError


class BitmaskGpuKernel(GpuKernel):
    """Any support, few rows: positions of packed values from population counts (`exec.triton.bitmap`)."""

    format = "bitmask"

    def inspect(self, packed: Packed) -> Arguments:
        """See `CheckedKernel.inspect`."""
        BitmaskKernel(self.name, self.value_dtype).inspect(packed.to("cpu"))
        return ()

    def multiply(self, x: Tensor, bias: Tensor | None, parts: Mapping[str, Tensor], *arguments: Any) -> Tensor:
        """See `GpuKernel.multiply`."""
        from sparseworks.exec.triton.bitmap import bitmap_linear

        return bitmap_linear(x, parts["bits"], parts["values"], parts["ptr"], bias)


class CsrGpuKernel(GpuKernel):
    """Any support, few rows: time and bytes follow the kept entries (`exec.triton.csr`)."""

    format = "csr16"

    def inspect(self, packed: Packed) -> Arguments:
        """See `CheckedKernel.inspect`."""
        CsrKernel(self.name, self.value_dtype).inspect(packed.to("cpu"))
        return ()

    def multiply(self, x: Tensor, bias: Tensor | None, parts: Mapping[str, Tensor], *arguments: Any) -> Tensor:
        """See `GpuKernel.multiply`."""
        from sparseworks.exec.triton.csr import csr_linear

        return csr_linear(x, parts["columns"], parts["values"], parts["ptr"], bias)


class InputMajorGpuKernel(GpuKernel):
    """Up to eight rows with many zeros: weights of inputs that are zero in every row are not read (`exec.triton.columns`)."""

    format = "inmajor"

    def refuses(self, call: Call) -> str | None:
        """See `GpuKernel.refuses`; also more rows."""
        most = f"it takes at most {_COLUMN_ROWS} rows, not {call.rows}" if call.rows > _COLUMN_ROWS else None
        return most or super().refuses(call)

    def inspect(self, packed: Packed) -> Arguments:
        """See `CheckedKernel.inspect`."""
        out, width = packed.shape
        part(packed, "weight", self.value_dtype, width, out, device=None)
        return ()

    def multiply(self, x: Tensor, bias: Tensor | None, parts: Mapping[str, Tensor], *arguments: Any) -> Tensor:
        """See `GpuKernel.multiply`."""
        from sparseworks.exec.triton.columns import column_linear

        return column_linear(x, parts["weight"], bias)


class BsrGpuKernel(GpuKernel):
    """Whole blocks, any number of rows: tensor-core products of the kept blocks only (`exec.triton.blocks`)."""

    format = "bsr"

    def inspect(self, packed: Packed) -> Arguments:
        """See `CheckedKernel.inspect`."""
        from sparseworks.exec.triton.blocks import Layout

        check_blocks(packed.to("cpu"), self.value_dtype)
        at = (packed.parts["ptr"].clone(), packed.parts["columns"].clone())
        return (Layout.of(packed.shape, int(packed.meta["block"]), *at),)

    def multiply(self, x: Tensor, bias: Tensor | None, parts: Mapping[str, Tensor], *arguments: Any) -> Tensor:
        """See `GpuKernel.multiply`."""
        from sparseworks.exec.triton.blocks import block_linear

        (layout,) = arguments
        return block_linear(x, parts["blocks"], layout, bias)

    def input_gradient(self, grad: Float[Tensor, "rows out"], packed: Packed) -> Float[Tensor, "rows in"]:
        """grad W from the kept blocks; in another type or place as every kernel does it."""
        call = Call(grad.shape[0], packed.shape, dtype=grad.dtype, device=grad.device.type)
        if self.refuses(call) is not None or grad.numel() == 0 or packed.shape[1] == 0:
            return super().input_gradient(grad, packed)
        from sparseworks.exec.triton.blocks import block_linear_dx

        return block_linear_dx(grad, packed.parts["blocks"], *self.arguments(packed))


class SemiGpuKernel(GpuKernel):
    """2:4 on sparse tensor cores through torch (`torch.sparse.to_sparse_semi_structured`), at most twice the dense rate.

    Torch's own layout is made at the first call and kept beside the packed form as long as that lives.
    """

    format = "semi"
    rate = 2.0

    def unsupported(self) -> str | None:
        """No GPU with sparse tensor cores."""
        return _no_sparse_tensor_cores()

    def inspect(self, packed: Packed) -> Arguments:
        """See `CheckedKernel.inspect`."""
        here = packed.to("cpu")
        NMKernel(self.name, self.value_dtype).inspect(here)
        weight, _ = FORMATS.get(self.format).unpack(here)
        return (torch.sparse.to_sparse_semi_structured(weight.to(packed.parts["values"].device)),)

    def multiply(self, x: Tensor, bias: Tensor | None, parts: Mapping[str, Tensor], *arguments: Any) -> Tensor:
        """See `GpuKernel.multiply`."""
        (weight,) = arguments
        return F.linear(x, weight, bias)


def check_blocks(packed: Packed, dtype: torch.dtype) -> None:
    """The parts of a `bsr` form fit together.

    Raises:
        KernelError: otherwise.
    """
    out, width = packed.shape
    block = number(packed, "block", SIZES[-1], SIZES[0])
    if block not in SIZES or out % block or width % block:
        raise damaged(packed, f"blocks of {block} do not tile it")
    columns = part(packed, "columns", torch.int32, None)
    part(packed, "blocks", dtype, columns.numel(), block, block)
    pointers(packed, out // block, columns.numel())
    below(packed, "columns", columns, width // block)
    below(packed, "columns", -columns, 1)


@cache
def _no_sparse_tensor_cores() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    found = torch.cuda.get_device_capability()
    if found < (8, 0):
        return f"sparse tensor cores need compute capability 8.0, this GPU has {found[0]}.{found[1]}"
    return None


_SUFFIX = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
for _kind, _dtypes in (
    (BitmaskGpuKernel, FLOATS),
    (CsrGpuKernel, FLOATS),
    (InputMajorGpuKernel, FLOATS),
    (BsrGpuKernel, FLOATS),
    (SemiGpuKernel, FLOATS[1:]),
):
    for _dtype in _dtypes:
        _name = f"{_kind.format}-gpu-{_SUFFIX[_dtype]}"
        KERNELS.register(_name)(_kind(_name, _dtype))
