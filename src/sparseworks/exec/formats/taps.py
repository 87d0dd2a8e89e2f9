"""`taps`: the kept entries of a convolution kernel, output by output, input channel by input channel; read where the maps lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from math import prod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sparseworks.core.errors import KernelError
from sparseworks.core.support import Support
from sparseworks.exec.format import FLOATS, FORMATS, Format, Packed, damaged
from sparseworks.exec.formats.segments import masked, pointers, scatter, segment_of, too_many
from sparseworks.exec.window import Window


class Taps(Format):
    """Parts: `ptr` (out + 1), `columns` (both int32) and `values`. Meta: the window.

    The matrix is that of the site, (out, taps * in), channels last; columns count taps within input channels.
    """

    registered_name = "taps"
    dtypes = FLOATS

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        return super().refuses(support, dtype) or too_many(max(support.count, support.shape[1]))

    def pack(
        self,
        weight: Float[Tensor, "out taps*in"],
        support: Support,
        *,
        dtype: torch.dtype = torch.float32,
        window: Window | None = None,
    ) -> Packed:
        """See `Format.pack`; without a window the kernel has one tap."""
        weight, window = masked(self, weight, support, dtype), window or Window((1, 1))
        taps = prod(window.kernel)
        kept, weight = _by_channel(support.mask(), taps), _by_channel(weight, taps)
        parts = {
            "ptr": pointers(kept.sum(1)).int(),
            "columns": kept.nonzero()[:, 1].int(),
            "values": weight[kept],
        }
        return Packed(self.registered_name, (kept.shape[0], kept.shape[1]), dtype, parts, {"window": astuple(window)})

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out taps*in"], Support]:
        """See `Format.unpack`."""
        out, width = packed.shape
        taps = prod(window_of(packed).kernel)
        check(packed.parts, out, width, packed.dtype)
        ptr, columns = packed.parts["ptr"], packed.parts["columns"].long()
        weight, support = scatter(packed.shape, segment_of(ptr), columns, packed.parts["values"])
        mask = _by_tap(support.mask(), taps).contiguous()
        return _by_tap(weight, taps).contiguous(), Support.from_mask(mask)

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        return support.count * (4 + dtype.itemsize) + (support.shape[0] + 1) * 4


FORMATS.register(Taps.registered_name)(Taps())


def window_of(packed: Packed) -> Window:
    """How the packed kernel moves.

    Raises:
        KernelError: the meta data hold no window that fits the matrix.
    """
    try:
        kernel, stride, padding, dilation = ((int(a), int(b)) for a, b in packed.meta["window"])
        window = Window(kernel, stride, padding, dilation)
    except (LookupError, TypeError, ValueError) as error:
        raise damaged(packed, f"'window' is missing or none ({error!r})") from None
    least = min(*window.kernel, *window.stride, *window.dilation, 1 + min(window.padding))
    if least < 1 or packed.shape[1] % prod(window.kernel):
        raise damaged(packed, f"{window} does not fit {packed.shape[1]} columns")
    return window


def check(parts: Mapping[str, Tensor], out: int, width: int, dtype: torch.dtype = torch.float32) -> None:
    """Pointers rise from 0 to the number of entries, columns rise within rows and lie inside the kernel.

    Raises:
        KernelError: otherwise.
    """
    ptr, columns, values = (parts[name] for name in ("ptr", "columns", "values"))
    kept = values.numel()
    for name, part, wanted, size in (
        ("ptr", ptr, torch.int32, out + 1),
        ("columns", columns, torch.int32, kept),
        ("values", values, dtype, kept),
    ):
        if not (part.dtype is wanted and part.shape == (size,) and part.is_cpu and part.is_contiguous()):
            found = f"{part.dtype} of {tuple(part.shape)} on {part.device}"
            raise _broken(f"{name!r} should be a contiguous {wanted} of {size} on the CPU, is {found}")
    if int(ptr[0]) != 0 or int(ptr[-1]) != kept or bool((ptr.long().diff() < 0).any()):
        raise _broken(f"'ptr' should rise from 0 to {kept}")
    if kept and not (int(columns.min()) >= 0 and int(columns.max()) < width):
        raise _broken(f"'columns' should lie in [0, {width})")
    if bool(((segment_of(ptr) * width + columns.long()).diff() <= 0).any()):
        raise _broken("'columns' should rise within each output")


def _broken(reason: str) -> KernelError:
    return KernelError(f"A sparse convolution is damaged: {reason}. Pack or load it anew.")


def _by_channel(matrix: Shaped[Tensor, "out taps*in"], taps: int) -> Shaped[Tensor, "out in*taps"]:
    return matrix.unflatten(1, (taps, -1)).transpose(1, 2).flatten(1) if matrix.numel() else matrix


def _by_tap(matrix: Shaped[Tensor, "out in*taps"], taps: int) -> Shaped[Tensor, "out taps*in"]:
    return matrix.unflatten(1, (-1, taps)).transpose(1, 2).flatten(1) if matrix.numel() else matrix
