"""SparseConv2d: a convolution of any kernel size for inference, with packed weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from math import prod
from operator import is_
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.conv.gradients import with_gradients
from sparseworks.exec.conv.taps import Layout, TapOffsets, taps_of
from sparseworks.exec.format import FORMATS, Packed, name_of
from sparseworks.exec.formats.taps import window_of
from sparseworks.exec.kernels.cpu import stamp
from sparseworks.exec.ladder import DENSE
from sparseworks.exec.native import native
from sparseworks.exec.ops import plain
from sparseworks.exec.prepared import Calls, PreparedModule, guarded
from sparseworks.exec.window import Window

KERNEL, FORMAT = "taps-fp32", "taps"
_PARTS = ("ptr", "columns", "values")
_MOST_SIZES = (
    8  # entries found for one size of maps are as large as the packed weight; feature pyramids have five sizes
)
_READS = {KERNEL: _PARTS, DENSE: ("weight",)}


class SparseConv2d(PreparedModule):
    """y = conv2d(x, W) + b for W with any kept taps, read from channel-major maps without patches or transposition.

    Each kept weight adds a shifted run of the padded map to its output (direct sparse convolution; Park et al. 2017, arXiv
    1608.01409; for 1x1 kernels Elsen et al. 2019, arXiv 1911.09723). Packed weights are constants: gradients flow to the
    input and to the bias only. float32 on the CPU runs compiled; everything else runs `torch.nn.functional.conv2d` on the
    unpacked weight. Where the dense convolution is faster (see `rungs`) its masked weight is kept, and torch convolves with it.

    Attributes:
        window: kernel, stride, padding and dilation along height and width.
        in_channels, out_channels: as in `nn.Conv2d`.
        rungs: `(least, kernel)`: what runs from how many output positions of all images on.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        parts: Mapping[str, Tensor],
        bias: Tensor | None,
        *,
        window: Window,
        shape: tuple[int, int],
        rungs: Sequence[tuple[int, str]] = ((0, KERNEL),),
    ):
        """Args: `parts` are those of the format `taps`, or a dense `weight`, or both; `shape` is `(out, in)`, in channels;
        `rungs` say from how many output positions on which kernel runs, "taps-fp32" or "dense".

        Raises:
            ShapeError: the bias does not fit.
            KernelError: other kernels, parts that these do not read, or rungs out of order.
        """
        super().__init__()
        self.window, (self.out_channels, self.in_channels) = window, shape
        self.rungs = [(int(least), str(kernel)) for least, kernel in rungs]
        needed = {name for _, kernel in self.rungs for name in _READS.get(kernel, (kernel,))}
        if needed != set(parts) or [r[0] for r in self.rungs] != sorted({0, *(r[0] for r in self.rungs)}):
            raise KernelError(f"Rungs {self.rungs} of a sparse convolution do not fit the parts {sorted(parts)}.")
        for name, part in parts.items():
            self.register_buffer(name, part)
        if bias is not None and tuple(bias.shape) != (self.out_channels,):
            raise ShapeError(f"A layer of {self.out_channels} outputs cannot take a bias of shape {tuple(bias.shape)}.")
        own = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.register_parameter("bias", own)
        self._known: dict[tuple[int, int], tuple[Any, list[Tensor], TapOffsets]] = {}
        self._calls = Calls()

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        support: Support,
        *,
        example: Float[Tensor, "*n in height width"] | None = None,
        rungs: Sequence[tuple[int, str]] = ((0, KERNEL),),
    ) -> SparseConv2d:
        """Pack the kept weights of an `nn.Conv2d`, whose support covers the site (out, taps * in), channels last.

        Args:
            conv: the dense layer, left as it is.
            support: the kept entries; what lies outside is dropped.
            example: an input. With it the layer is planned for maps of this size (see `sparseworks.plan`), and keeps the
                masked dense weight unless sparse is faster beyond noise. Without it nothing is timed.
            rungs: `(least, kernel)`, what runs from how many output positions (of all images together) on, instead of planning.

        Raises:
            ModelError: not a plain `nn.Conv2d` (groups, padding that is not zeros).
            ShapeError: support and weight differ in shape.
            KernelError: a weight in other than 16 or 32 bits.
        """
        window = Window.of(conv)
        assert isinstance(conv, nn.Conv2d)
        if example is not None:
            rungs = _planned(conv, support, example)
        weight = conv.weight.detach()
        site = weight.movedim(1, -1).flatten(1)
        if tuple(support.shape) != tuple(site.shape):
            raise ShapeError(f"The kernel matrix is {tuple(site.shape)}, its support {tuple(support.shape)}.")
        packed = FORMATS.get(FORMAT).pack(site, support, dtype=weight.dtype, window=window)  # type: ignore[call-arg]
        return cls.from_packed(packed, conv.bias, rungs).to(weight.device).train(conv.training)

    @classmethod
    def from_packed(
        cls, packed: Packed, bias: Tensor | None, rungs: Sequence[tuple[int, str]] = ((0, KERNEL),)
    ) -> SparseConv2d:
        """A layer over a form of the format `taps`.

        Raises:
            KernelError: another format, or a damaged form.
        """
        if packed.format != FORMAT:
            raise KernelError(f"A sparse convolution reads {FORMAT!r}, not {packed.format!r}.")
        window, (out, width) = window_of(packed), packed.shape
        channels = width // prod(window.kernel)
        kernels = {kernel for _, kernel in rungs}
        parts = dict(packed.parts) if KERNEL in kernels else {}
        if DENSE in kernels:
            parts["weight"] = _as_kernel(packed.unpack()[0], window)
        return cls(parts, bias, window=window, shape=(out, channels), rungs=rungs)

    @classmethod
    def from_metadata(cls, meta: Mapping[str, Any]) -> SparseConv2d:
        """The empty layer that `metadata()` describes; `load_state_dict` then fills it.

        Raises:
            KernelError: the metadata are not those of a sparse convolution.
        """
        try:
            (out, width), kind, kept = meta["shape"], getattr(torch, meta["dtype"]), meta["kept"]
            window = Window(*((int(a), int(b)) for a, b in meta["window"]))
            rungs = meta.get("rungs") or [(0, DENSE if kept is None else KERNEL)]  # earlier files name none
            parts = {}
            if kept is not None:
                parts["ptr"] = torch.zeros(out + 1, dtype=torch.int32)
                parts["columns"] = torch.zeros(kept, dtype=torch.int32)
                parts["values"] = torch.zeros(kept, dtype=kind)
            if any(kernel == DENSE for _, kernel in rungs):
                parts["weight"] = torch.zeros(out, width, *window.kernel, dtype=kind)
            bias = None if meta["bias"] is None else nn.Parameter(torch.zeros(out, dtype=getattr(torch, meta["bias"])))
            return cls(parts, bias, window=window, shape=(out, width), rungs=rungs)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise KernelError(
                f"Not the metadata of a SparseConv2d ({error!r}); write them with `metadata()`."
            ) from None

    def metadata(self) -> dict[str, Any]:
        """JSON-able description from which `from_metadata` builds the empty layer."""
        stored = self._buffers.get("values", self._buffers.get("weight"))
        assert stored is not None
        return {
            "shape": [self.out_channels, self.in_channels],
            "window": [list(pair) for pair in astuple(self.window)],
            "dtype": name_of(stored.dtype),
            "kept": stored.numel() if "values" in self._buffers else None,
            "bias": None if self.bias is None else name_of(self.bias.dtype),
            "rungs": [list(rung) for rung in self.rungs],
        }

    # -- use ------------------------------------------------------------------------------------------------------

    def forward(self, x: Float[Tensor, "*n in height width"]) -> Float[Tensor, "*n out high wide"]:
        """`conv2d(x, W) + b`, of one map or several, in any memory format.

        Raises:
            ShapeError: another number of channels, or maps smaller than the kernel.
            DtypeError: an input of another type than the bias, outside of autocast.
            KernelError: damaged buffers.
        """
        call = self._calls.get(x.shape)
        if call is not None and plain(x, self._parameters["bias"]):
            y = call(x, self._parameters["bias"], self._buffers)
            if y is False:
                self._calls.clear()
            elif y is not None:
                return y
        high, wide = self.window.outputs((x.shape[-2], x.shape[-1])) if x.dim() > 1 else (0, 0)
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels or min(high, wide) < 1:
            raise ShapeError(
                f"This convolution takes {self.in_channels} channels and maps of its kernel's size or more, got {tuple(x.shape)}."
            )
        if self.bias is not None and x.dtype is not self.bias.dtype and not torch.is_autocast_enabled(x.device.type):
            raise DtypeError(
                f"This convolution has a bias of {self.bias.dtype}, got an input of {x.dtype}; convert one of them."
            )
        if self._kernel_at((x.shape[0] if x.dim() == 4 else 1) * high * wide) == DENSE:
            return self._torch(x, self.get_buffer("weight"))
        if plain(x, self.bias) and self._compiled(x):
            return self._run(x, self.bias)
        if torch.compiler.is_compiling():
            from sparseworks.exec.conv.uncompiled import convolve

            return convolve(self, x)
        return with_gradients(self, x)

    _prepares = forward

    def dense_weight(self) -> Float[Tensor, "out in height width"]:
        """The kernel with exact zeros outside the support.

        Raises:
            KernelError: damaged buffers.
        """
        if "weight" in self._buffers:
            return self.get_buffer("weight")
        return _as_kernel(self.packed.unpack()[0].to(self.get_buffer("values").device), self.window)

    def support(self) -> Support:
        """The kept entries of the site (out, taps * in), channels last. A dense weight alone has those that are not zero."""
        if "values" in self._buffers:
            return self.packed.unpack()[1]
        return Support.from_mask((self.get_buffer("weight") != 0).movedim(1, -1).flatten(1).cpu())

    @property
    def packed(self) -> Packed:
        """The form of the format `taps`; its parts are the layer's buffers.

        Raises:
            KernelError: this layer holds a dense weight only.
        """
        if "values" not in self._buffers:
            raise KernelError("This convolution keeps a dense weight only; it has no packed form.")
        parts = {name: self.get_buffer(name) for name in _PARTS}
        shape = self.out_channels, self.in_channels * prod(self.window.kernel)
        return Packed(FORMAT, shape, parts["values"].dtype, parts, {"window": astuple(self.window)})

    def extra_repr(self) -> str:
        """Channels, window, kept entries, and what runs from how many positions on."""
        w = self.window
        size = self.out_channels * self.in_channels * prod(w.kernel)
        kept = f"density={self.get_buffer('values').numel() / max(size, 1):.4g}, " if "values" in self._buffers else ""
        runs = ", ".join(f"{name} from {least} positions" if least else name for least, name in self.rungs)
        return (
            f"{self.in_channels}, {self.out_channels}, kernel={w.kernel}, stride={w.stride}, padding={w.padding}, "
            f"dilation={w.dilation}, bias={self.bias is not None}, {kept}{runs}"
        )

    def _kernel_at(self, positions: int) -> str:
        return next(kernel for least, kernel in reversed(self.rungs) if positions >= least)

    def _torch(self, x: Tensor, weight: Tensor) -> Tensor:
        w = self.window
        return F.conv2d(x, weight.to(x.dtype), self.bias, w.stride, w.padding, w.dilation)

    def _compiled(self, x: Tensor) -> bool:
        """Whether the extension takes this call."""
        usual = all(t.dtype is torch.float32 and t.is_cpu for t in (x, self.get_buffer("values")))
        return native() is not None and usual and (self.bias is None or self.bias.dtype is torch.float32)

    def _run(self, x: Tensor, bias: Tensor | None) -> Tensor:
        size = x.shape[-2], x.shape[-1]
        taps, together = self._taps(size), x.is_contiguous()
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-3], self.out_channels, *taps.size)
        if y.numel() == 0:
            return y
        images, module = x.shape[0] if x.dim() == 4 else 1, cast("Any", native())
        parts = {name: self.get_buffer(name) for name in _PARTS}
        sizes = [self.out_channels, *taps.size, *taps.numbers]
        arguments = (taps.starts.data_ptr(), taps.offsets.data_ptr(), parts["values"].data_ptr(), sizes)
        added = None if bias is None else bias.detach().contiguous()
        address = 0 if added is None else added.data_ptr()
        module.conv(x.data_ptr(), y.data_ptr(), address, images, torch.get_num_threads(), *arguments)
        lasting = bias is self.bias and (bias is None or bias.is_contiguous())
        if lasting and together and x.shape not in self._calls:
            _make_room(self._calls)
            self._calls.add(x.shape, guarded(module.conv, images, arguments, parts, y.shape, bias, taps))
        return y

    def _taps(self, size: tuple[int, int]) -> TapOffsets:
        """Found and checked once for a size of maps, until a buffer is replaced or written to."""
        buffers = [self.get_buffer(name) for name in _PARTS]
        seen, known = stamp(buffers), self._known.get(size)
        # The buffers themselves are kept too: another may come to lie at the address of one that is gone.
        if known is None or known[0] != seen or not all(map(is_, known[1], buffers)):
            layout = Layout(self.window, self.in_channels, size)
            known = seen, buffers, taps_of(dict(zip(_PARTS, buffers, strict=True)), self.out_channels, layout)
            _make_room(self._known)
            self._known[size] = known
        return known[2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseConv2d:
        self._calls.clear()
        self._known.clear()  # or moved buffers would stay in memory until the next call
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_known": {}}  # addresses are not carried into a copy


def _make_room(kept: dict[Any, Any]) -> None:
    """For one more: the oldest goes."""
    while len(kept) >= _MOST_SIZES:
        del kept[next(iter(kept))]


def _as_kernel(matrix: Float[Tensor, "out taps*in"], window: Window) -> Float[Tensor, "out in height width"]:
    """The site's matrix as torch lays out a kernel."""
    channels = matrix.shape[1] // prod(window.kernel)
    return matrix.reshape(matrix.shape[0], *window.kernel, channels).movedim(-1, 1).contiguous()


def _planned(conv: nn.Conv2d, support: Support, example: Tensor) -> Sequence[tuple[int, str]]:
    from sparseworks.exec.plan import plan

    drawn = plan(nn.Sequential(OrderedDict(conv=conv)), {"conv": support}, examples=[example])
    return drawn.rungs("conv") or ((0, DENSE),)
