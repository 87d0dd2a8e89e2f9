"""Activation sparsity: y = W x over the inputs worth reading. A rule says which, weights of the others are not touched."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.core.normal import normal_threshold
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Packed, name_of
from sparseworks.exec.kernel import KERNELS, Call, Kernel
from sparseworks.exec.kernels.few_rows import InputBitsKernel, InputMajorKernel, SkippingKernel
from sparseworks.exec.kernels.gpu import InputMajorGpuKernel
from sparseworks.exec.triton import on_gpu

WHOLE, KEPT = "inmajor", "inbits"
MOST_KEPT = {torch.float32: 0.75, torch.bfloat16: 0.7, torch.int8: 0.0}
"""The share of kept weights up to which reading bits and kept values takes less time than reading all (4096x4096, one row, cold, AVX2 and
AVX-512). Spreading a byte takes longer than reading one, so int8 gains memory only."""
_READERS: dict[str, type[SkippingKernel]] = {WHOLE: InputMajorKernel, KEPT: InputBitsKernel}
K = TypeVar("K", bound=Kernel)


def kept_by_threshold(x: Float[Tensor, "rows in"], threshold: float) -> Float[Tensor, "rows in"]:
    """x where |x| > threshold, else 0: TEAL (Liu et al. 2024, arXiv 2408.14690)."""
    return x.where(~(x.abs() <= threshold), 0.0)


def kept_by_count(
    x: Float[Tensor, "rows in"], keep: int, size: Float[Tensor, "rows in"] | None = None
) -> Float[Tensor, "rows in"]:
    """The `keep` largest |x| of each row (or of what `size` says), ties to the lower index, else 0; a NaN counts as largest."""
    if keep >= x.shape[1]:
        return x
    size = x.abs() if size is None else size
    order = size.nan_to_num(nan=float("inf")).sort(dim=1, descending=True, stable=True).indices[:, :keep]
    return torch.zeros_like(x).scatter(1, order, x.gather(1, order))


class SkippingLinear(nn.Module):
    """y = W s(x) + b, where s keeps the inputs that `threshold` or `keep` names. x (*, in) -> y (*, out), computed in float32 on the
    CPU and in the type of the weights on a GPU, to which x is rounded before s looks at it.

    The weights lie input-major, so those of skipped inputs are not read: up to eight rows run by the kernel that skips, more rows
    by a dense product with s(x), which gives the same result. Of weight-sparse layers the kernel reads a bit per weight and those
    that are kept (`inbits`), so both save; where most are kept, in int8 and on a GPU all are stored (`inmajor`), being read faster.

    Attributes:
        threshold: |x| up to it counts as zero (None: not used). May be changed between calls.
        keep: inputs kept in each row (None: not used). May be changed between calls.
        exact: `keep` by sorting; otherwise by the statistical threshold, which keeps about as many.
    """

    bias: Tensor | None

    def __init__(
        self,
        packed: Packed,
        bias: Float[Tensor, " out"] | None = None,
        *,
        threshold: float | None = None,
        keep: int | None = None,
        exact: bool = True,
    ):
        """Over weights packed as `inmajor` or `inbits`.

        Raises:
            KernelError: another format, both or neither of threshold and keep, or one out of range.
            ShapeError: the bias does not fit.
        """
        super().__init__()
        if packed.format not in _READERS:
            raise KernelError(
                f"Skipping inputs needs weights packed as {WHOLE!r} or {KEPT!r}, not {packed.format!r}; pack them so."
            )
        if (threshold is None) == (keep is None):
            raise KernelError("Name either a threshold or how many inputs to keep, not both and not neither.")
        if threshold is not None and not threshold >= 0:
            raise KernelError(f"The threshold is for |x|, so it is at least 0; got {threshold}.")
        if keep is not None and not 0 <= keep <= packed.shape[1]:
            raise KernelError(f"Of {packed.shape[1]} inputs 0 to {packed.shape[1]} can be kept, not {keep}.")
        if bias is not None and tuple(bias.shape) != packed.shape[:1]:
            raise ShapeError(f"The bias has shape {tuple(bias.shape)}, the layer {packed.shape[0]} outputs.")
        self._hold(packed)
        self.register_buffer("bias", None if bias is None else bias.detach().float().contiguous())
        self.threshold, self.keep, self.exact = threshold, keep, exact

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        support: Support | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        threshold: float | None = None,
        keep: int | None = None,
        exact: bool = True,
        format: str | None = None,
    ) -> SkippingLinear:
        """Of a dense layer, with zeros outside `support` if one is given, packed as `format` or else as what is read faster.

        Raises:
            KernelError, ShapeError: see the class; also where `dtype` cannot be stored or the support does not fit.
        """
        held = Support.full(tuple(linear.weight.shape)) if support is None else support
        chosen = format or (KEPT if held.density <= MOST_KEPT.get(dtype, 0.0) and not linear.weight.is_cuda else WHOLE)
        packed = FORMATS.get(chosen).pack(linear.weight, held, dtype=dtype)
        return cls(packed, linear.bias, threshold=threshold, keep=keep, exact=exact)

    @property
    def packed(self) -> Packed:
        """The weights."""
        return Packed(self._format, self._shape, self._dtype, {name: self.get_buffer(name) for name in self._names})

    def _hold(self, packed: Packed) -> None:
        self._format, self._names = packed.format, tuple(packed.parts)
        self._shape, self._dtype = packed.shape, packed.dtype
        for name, tensor in packed.parts.items():
            self.register_buffer(name, tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As every module moves; on a GPU, whose kernel reads all weights of an input, `inbits` is packed anew as `inmajor`."""
        super()._apply(fn, recurse)
        if self._format == KEPT and on_gpu(self.get_buffer("bits")):
            device, (weight, support) = self.packed.device, self.packed.unpack()
            for name in self._names:
                delattr(self, name)
            self._hold(FORMATS.get(WHOLE).pack(weight, support, dtype=self._dtype).to(device))
        return self

    def kept(self, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows in"]:
        """s(x): x with zeros for the inputs that are skipped."""
        if self.threshold is not None:
            return kept_by_threshold(x, self.threshold)
        keep = self.keep or 0
        if self.exact or keep in (0, x.shape[1]):
            return kept_by_count(x, keep)
        return x.where(~(x.abs() <= normal_threshold(x.abs(), keep)), 0.0)

    def forward(self, x: Float[Tensor, "*lead in"]) -> Float[Tensor, "*lead out"]:
        """W s(x) + b.

        Raises:
            ShapeError: x has another number of inputs.
        """
        if x.dim() == 0 or x.shape[-1] != self._shape[1]:
            raise ShapeError(f"The layer takes (*, {self._shape[1]}), got {tuple(x.shape)}.")
        rows = x.reshape(prod(x.shape[:-1]), self._shape[1])
        if torch.is_grad_enabled() and rows.requires_grad:
            y = self._dense(rows.float())
        elif on_gpu(rows):
            y = self._on_gpu(rows.to(self._dtype if self._dtype.is_floating_point else torch.float32))
        else:
            y = self._on_cpu(rows.float().contiguous())
        return y.reshape(*x.shape[:-1], self._shape[0]).to(x.dtype)

    def _dense(self, x: Tensor) -> Tensor:
        weight, _ = self.packed.unpack()
        return F.linear(self.kept(x), weight.to(x), None if self.bias is None else self.bias.to(x.dtype))

    def _on_cpu(self, x: Tensor) -> Tensor:
        kernel = _kernel(_READERS[self._format], self._dtype)
        call = Call(x.shape[0], self._shape, threads=torch.get_num_threads(), device=x.device.type)
        if kernel is None or kernel.refuses(call) is not None:
            return self._dense(x)
        if self.threshold is None:
            return kernel(self.kept(x), self.packed, self.bias)
        return kernel.skipping(x, self.packed, self.bias, torch.full((x.shape[0],), self.threshold))

    def _on_gpu(self, x: Tensor) -> Tensor:
        """In the type of the weights: few rows skip, many are multiplied whole."""
        kernel = _kernel(InputMajorGpuKernel, self._dtype)
        call = Call(x.shape[0], self._shape, dtype=x.dtype, device=x.device.type)
        if kernel is None or kernel.refuses(call) is not None:
            return self._dense(x)
        return kernel(self.kept(x).contiguous(), self.packed, None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        """Shown by `print`."""
        rule = f"threshold={self.threshold}" if self.keep is None else f"keep={self.keep}, exact={self.exact}"
        stored = f"{self._format} {name_of(self._dtype)}"
        return f"in={self._shape[1]}, out={self._shape[0]}, {stored}, {rule}"


def _kernel(kind: type[K], dtype: torch.dtype) -> K | None:
    """The registered kernel of that class for weights of that type."""
    return next((k for k in KERNELS if isinstance(k, kind) and k.value_dtype is dtype), None)
