"""SparseConv2d: a convolution of any kernel size for inference, with packed weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec import measure
from sparseworks.exec.choose import MARGIN
from sparseworks.exec.conv.taps import Layout, Taps, checked, taps_of
from sparseworks.exec.format import name_of
from sparseworks.exec.formats.segments import pointers, scatter, segment_of
from sparseworks.exec.kernels.cpu import stamp
from sparseworks.exec.native import native
from sparseworks.exec.ops import plain
from sparseworks.exec.window import Window

_PARTS = ("ptr", "columns", "values")


class SparseConv2d(nn.Module):
    """y = conv2d(x, W) + b for W with any kept taps, read from channel-major maps without patches or transposition.

    Each kept weight adds a shifted run of the padded map to its output (direct sparse convolution; Park et al. 2017, arXiv
    1608.01409; for 1x1 kernels Elsen et al. 2019, arXiv 1911.09723). Packed weights are constants: gradients flow to the
    input and to the bias only. float32 on the CPU runs compiled; everything else runs `torch.nn.functional.conv2d` on the
    unpacked weight. Where the dense convolution was measured to be faster (see `from_conv`) its masked weight is kept instead.

    Attributes:
        window: kernel, stride, padding and dilation along height and width.
        in_channels, out_channels: as in `nn.Conv2d`.
        dense: whether the dense weight is kept.
    """

    bias: nn.Parameter | None

    def __init__(self, parts: Mapping[str, Tensor], bias: Tensor | None, *, window: Window, shape: tuple[int, int]):
        """Args: `parts` are `ptr` (out + 1) and `columns` in int32 and `values`, output by output, or a dense `weight`;
        columns count taps within input channels; `shape` is `(out, in)`, in channels.

        Raises:
            ShapeError: the bias does not fit.
        """
        super().__init__()
        self.window, (self.out_channels, self.in_channels) = window, shape
        self.dense = "weight" in parts
        for name in ("weight",) if self.dense else _PARTS:
            self.register_buffer(name, parts[name])
        if bias is not None and tuple(bias.shape) != (self.out_channels,):
            raise ShapeError(f"A layer of {self.out_channels} outputs cannot take a bias of shape {tuple(bias.shape)}.")
        own = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.register_parameter("bias", own)
        self._known: tuple[Any, list[Tensor], Taps] | None = None

    @classmethod
    def from_conv(
        cls, conv: nn.Module, support: Support, *, example: Float[Tensor, "*n in height width"] | None = None
    ) -> SparseConv2d:
        """Pack the kept weights of an `nn.Conv2d`, whose support covers the site (out, taps * in), channels last.

        Args:
            conv: the dense layer, left as it is.
            support: the kept entries; what lies outside is dropped.
            example: an input. With it the dense convolution and the sparse one are timed on it, and the layer keeps the
                dense weight unless sparse is faster by more than 3 % in three of four rounds. Without it nothing is timed.

        Raises:
            ModelError: not a plain `nn.Conv2d` (groups, padding that is not zeros).
            ShapeError: support and weight differ in shape.
        """
        window = Window.of(conv)
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight.detach()
        taps = window.kernel[0] * window.kernel[1]
        if tuple(support.shape) != (conv.out_channels, taps * conv.in_channels):
            site = (conv.out_channels, taps * conv.in_channels)
            raise ShapeError(f"The kernel matrix is {site}, its support {tuple(support.shape)}.")
        mask = support.mask().to(weight.device).reshape(conv.out_channels, *window.kernel, conv.in_channels)
        mask = mask.permute(0, 3, 1, 2).flatten(1)
        parts = {
            "ptr": pointers(mask.sum(1).cpu()).int(),
            "columns": mask.nonzero()[:, 1].int(),
            "values": weight.flatten(1)[mask],
        }
        shape = conv.out_channels, conv.in_channels
        sparse = cls({k: t.to(weight.device) for k, t in parts.items()}, conv.bias, window=window, shape=shape)
        sparse.train(conv.training)
        if example is None or sparse._wins(example):
            return sparse
        return cls({"weight": sparse.dense_weight()}, conv.bias, window=window, shape=shape).train(conv.training)

    @classmethod
    def from_metadata(cls, meta: Mapping[str, Any]) -> SparseConv2d:
        """The empty layer that `metadata()` describes; `load_state_dict` then fills it.

        Raises:
            KernelError: the metadata are not those of a sparse convolution.
        """
        try:
            (out, width), kind, kept = meta["shape"], getattr(torch, meta["dtype"]), meta["kept"]
            window = Window(*((int(a), int(b)) for a, b in meta["window"]))
            if kept is None:
                parts = {"weight": torch.zeros(out, width, *window.kernel, dtype=kind)}
            else:
                parts = {
                    "ptr": torch.zeros(out + 1, dtype=torch.int32),
                    "columns": torch.zeros(kept, dtype=torch.int32),
                }
                parts["values"] = torch.zeros(kept, dtype=kind)
            bias = None if meta["bias"] is None else nn.Parameter(torch.zeros(out, dtype=getattr(torch, meta["bias"])))
            return cls(parts, bias, window=window, shape=(out, width))
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise KernelError(
                f"Not the metadata of a SparseConv2d ({error!r}); write them with `metadata()`."
            ) from None

    def metadata(self) -> dict[str, Any]:
        """JSON-able description from which `from_metadata` builds the empty layer."""
        w, stored = self.window, self.get_buffer("weight" if self.dense else "values")
        return {
            "shape": [self.out_channels, self.in_channels],
            "window": [list(w.kernel), list(w.stride), list(w.padding), list(w.dilation)],
            "dtype": name_of(stored.dtype),
            "kept": None if self.dense else stored.numel(),
            "bias": None if self.bias is None else name_of(self.bias.dtype),
        }

    # -- use ------------------------------------------------------------------------------------------------------

    def forward(self, x: Float[Tensor, "*n in height width"]) -> Float[Tensor, "*n out high wide"]:
        """`conv2d(x, W) + b`, of one map or several, in any memory format.

        Raises:
            ShapeError: another number of channels, or maps smaller than the kernel.
            DtypeError: an input of another type than the bias, outside of autocast.
            KernelError: damaged buffers.
        """
        high, wide = self.window.outputs((x.shape[-2], x.shape[-1])) if x.dim() > 1 else (0, 0)
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels or min(high, wide) < 1:
            raise ShapeError(
                f"This convolution takes {self.in_channels} channels and maps of its kernel's size or more, got {tuple(x.shape)}."
            )
        if self.bias is not None and x.dtype is not self.bias.dtype and not torch.is_autocast_enabled(x.device.type):
            raise DtypeError(
                f"This convolution has a bias of {self.bias.dtype}, got an input of {x.dtype}; convert one of them."
            )
        if self.dense:
            return self._torch(x, self.get_buffer("weight"))
        if plain(x, self.bias) and self._compiled(x):
            return self._run(x, self.bias)
        if torch.compiler.is_compiling():
            from sparseworks.exec.conv.uncompiled import convolve

            return convolve(self, x)
        return with_gradients(self, x)

    def dense_weight(self) -> Float[Tensor, "out in height width"]:
        """The kernel with exact zeros outside the support.

        Raises:
            KernelError: damaged buffers.
        """
        return self.get_buffer("weight") if self.dense else self._unpack()[0]

    def support(self) -> Support:
        """The kept entries of the site (out, taps * in), channels last. A kept dense weight has those that are not zero."""
        weight = self.get_buffer("weight") != 0 if self.dense else self._unpack()[1]
        return Support.from_mask(weight.permute(0, 2, 3, 1).flatten(1).cpu())

    def extra_repr(self) -> str:
        """Channels, window and kept entries."""
        w = self.window
        size = self.out_channels * self.in_channels * w.kernel[0] * w.kernel[1]
        kept = "dense" if self.dense else f"density={self.get_buffer('values').numel() / max(size, 1):.4g}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel={w.kernel}, stride={w.stride}, padding={w.padding}, "
            f"dilation={w.dilation}, bias={self.bias is not None}, {kept}"
        )

    def _unpack(self) -> tuple[Tensor, Tensor]:
        parts = {name: self.get_buffer(name) for name in _PARTS}
        near = {name: t.cpu() for name, t in parts.items()}
        kernel = self.window.kernel
        shape = self.out_channels, self.in_channels * kernel[0] * kernel[1]
        checked(near | {"values": near["values"].float()}, *shape)
        weight, support = scatter(shape, segment_of(near["ptr"]), near["columns"].long(), near["values"])
        full = self.out_channels, self.in_channels, *kernel
        return weight.to(parts["values"].device).view(full), support.mask().view(full)

    def _torch(self, x: Tensor, weight: Tensor) -> Tensor:
        w = self.window
        return F.conv2d(x, weight.to(x.dtype), self.bias, w.stride, w.padding, w.dilation)

    def _compiled(self, x: Tensor) -> bool:
        """Whether the extension takes this call."""
        usual = all(t.dtype is torch.float32 and t.is_cpu for t in (x, self.get_buffer("values")))
        return native() is not None and usual and (self.bias is None or self.bias.dtype is torch.float32)

    def _run(self, x: Tensor, bias: Tensor | None) -> Tensor:
        size = x.shape[-2], x.shape[-1]
        taps, x = self._taps(size), x.contiguous()
        y = x.new_empty(*x.shape[:-3], self.out_channels, *taps.size)
        if y.numel() == 0:
            return y
        bias = None if bias is None else bias.detach().contiguous()
        images = x.shape[0] if x.dim() == 4 else 1
        module: Any = native()
        module.conv(
            x.data_ptr(), y.data_ptr(), 0 if bias is None else bias.data_ptr(), taps.starts.data_ptr(), taps.offsets.data_ptr(),
            self.get_buffer("values").data_ptr(), [images, self.out_channels, *taps.size, *taps.numbers],
            torch.get_num_threads(),
        )  # fmt: skip
        return y

    def _taps(self, size: tuple[int, int]) -> Taps:
        """Found and checked once for a size of maps, until a buffer is replaced or written to."""
        buffers = [self.get_buffer(name) for name in _PARTS]
        key = size, stamp(buffers)
        # The buffers themselves are kept too: another may come to lie at the address of one that is gone.
        if self._known is None or self._known[0] != key or not all(map(is_, self._known[1], buffers)):
            layout = Layout(self.window, self.in_channels, size)
            self._known = key, buffers, taps_of(dict(zip(_PARTS, buffers, strict=True)), self.out_channels, layout)
        return self._known[2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseConv2d:
        self._known = None  # or moved buffers would stay in memory until the next call
        return super()._apply(fn, recurse)

    def _wins(self, example: Tensor) -> bool:
        """Faster than the dense convolution on `example` beyond noise; never without the extension."""
        if not self._compiled(example):
            return False
        weight = self.dense_weight()
        with torch.inference_mode():
            times = measure.compare({"dense": lambda: self._torch(example, weight), "sparse": lambda: self(example)})
        return times.ratio("dense", "sparse").low > MARGIN

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_known": None}  # addresses are not carried into a copy


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, layer):  # type: ignore[override]
        ctx.layer, ctx.size = layer, x.shape
        return layer._run(x, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        w, needs = ctx.layer.window, ctx.needs_input_grad
        grads, size = (dy, ctx.size) if dy.dim() == 4 else (dy[None], (1, *ctx.size))
        weight = ctx.layer.dense_weight()
        dx = conv2d_input(size, weight, grads, w.stride, w.padding, w.dilation) if needs[0] else None
        return None if dx is None else dx.view(ctx.size), grads.sum((0, 2, 3)) if needs[1] else None, None


def with_gradients(layer: SparseConv2d, x: Tensor) -> Tensor:
    """The convolution with what autograd needs; torch's own where another transform than a gradient is at work."""
    with torch.no_grad():
        usual = plain(x, layer.bias) and layer._compiled(x)  # no transform but a gradient is at work
    return _Conv.apply(x, layer.bias, layer) if usual else layer._torch(x, layer.dense_weight())
