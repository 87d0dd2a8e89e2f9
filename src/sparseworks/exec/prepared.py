"""Prepared calls: what a layer checked at one shape of input is not checked again until a buffer is replaced or written to.

At one row a small product takes a few microseconds, and the way to it (ladder, packed form, checks of the kernel) took three times
as long. A prepared call keeps the addresses, and compares stamps instead of contents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparseworks.exec.format import Packed
from sparseworks.exec.kernel import Call, Kernel
from sparseworks.exec.kernels.cpu import NativeKernel

Buffers = Mapping[str, Tensor | None]
Prepared = Callable[[Tensor, Tensor | None, Buffers], Tensor | None]
_MOST = 64


class Calls(dict[torch.Size, Prepared]):
    """Shape of the input -> prepared call. Copies and pickles are empty: addresses are those of one layer in one process."""

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        return Calls, ()

    def add(self, shape: torch.Size, call: Prepared) -> Prepared:
        """Keep `call`; a server may see every length once, so there is a limit."""
        if len(self) >= _MOST:
            self.clear()
        self[shape] = call
        return call


def unprepared(x: Tensor, bias: Tensor | None, buffers: Buffers) -> None:
    """Stands where nothing can be prepared: the call goes the long way."""


def prepare(
    calls: Calls,
    shape: torch.Size,
    kernel: Kernel,
    packed: Packed,
    names: Sequence[str],
    bias: Tensor | None,
    density: float,
) -> Prepared:
    """`call(x, bias, buffers)` for inputs of `shape`; it returns None where the long way must be gone, and forgets itself where a
    buffer is no longer what it was.

    Args:
        packed: the form that `kernel` reads at so many rows.
        names: buffer names of its parts, in their order.
        density: share of weights kept.

    Raises:
        KernelError: damaged buffers.
    """
    out, width = packed.shape
    rows = shape.numel() // width if width else 0
    if not isinstance(kernel, NativeKernel) or type(kernel).__call__ is not NativeKernel.__call__:
        return unprepared
    if not shape or shape[-1] != width or not rows or not out:
        return unprepared
    if kernel.refuses(Call(rows, packed.shape, density, threads=torch.get_num_threads())) is not None:
        return unprepared
    parts = dict(zip(names, packed.parts.values(), strict=True))
    arguments = kernel.arguments(packed)
    return guarded(calls, kernel.entry_point(), rows, arguments, parts, (*shape[:-1], out), bias)


def guarded(
    calls: Calls,
    run: Callable[..., None],
    rows: int,
    arguments: Sequence[Any],
    parts: Mapping[str, Tensor],
    size: Sequence[int],
    bias: Tensor | None,
    held: object = None,
) -> Prepared:
    """The call itself, for as long as the `parts` are the buffers of these names and were not written to.

    Args:
        run: `run(x, y, bias, rows, threads, *arguments)`, addresses as integers.
        size: of the output.
        bias: the present one: another may take its place later, but none may come or go.
        held: whatever else the addresses in `arguments` belong to; it lives as long as the call.
    """
    watched = [(n, t, t.data_ptr()) for n, t in parts.items()]
    counted = [
        (t, t._version) for t in parts.values() if not t.is_inference()
    ]  # inference tensors keep no count of writes
    out, biased = 0 if bias is None else bias.numel(), bias is not None
    float32, threads = torch.float32, torch.get_num_threads

    def call(x: Tensor, bias: Tensor | None, buffers: Buffers, held: object = held) -> Tensor | None:
        for name, part, address in watched:
            if buffers[name] is not part or part.data_ptr() != address:
                return calls.clear()
        for part, version in counted:
            if part._version != version:
                return calls.clear()
        if x.dtype is not float32 or not x.is_cpu or not x.is_contiguous():
            return None
        offset = 0
        if biased:
            if bias is None or bias.dtype is not float32 or bias.numel() != out or not bias.is_contiguous():
                return calls.clear()
            offset = bias.data_ptr()
        elif bias is not None:
            return calls.clear()
        y = x.new_empty(size)
        run(x.data_ptr(), y.data_ptr(), offset, rows, threads(), *arguments)
        return y

    return call
