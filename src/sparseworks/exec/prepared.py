"""Prepared calls: what a layer checked at one shape of input is not checked again until a buffer is replaced or written to.

At one row a small product takes a few microseconds, and the way to it (ladder, packed form, checks of the kernel) took three times
as long. A prepared call keeps the addresses, and compares stamps instead of contents (`cpp/prepared`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from sparseworks.exec.format import Packed
from sparseworks.exec.kernel import Call, Kernel
from sparseworks.exec.kernels.cpu import NativeKernel
from sparseworks.exec.native import native
from sparseworks.exec.ops import TRANSFORMS

Buffers = Mapping[str, Tensor | None]
Prepared = Callable[[Tensor, Tensor | None, Buffers], Tensor | Literal[False] | None]
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
    shape: torch.Size,
    kernel: Kernel,
    packed: Packed,
    names: Sequence[str],
    bias: Tensor | None,
    density: float,
) -> Prepared:
    """`call(x, bias, buffers)` for inputs of `shape`; it returns None where the long way must be gone, and False where it must also
    be forgotten, since a buffer or the bias is no longer what it was.

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
    if bias is not None and not (bias.dtype is torch.float32 and bias.shape == (out,) and bias.is_contiguous()):
        return unprepared
    parts = dict(zip(names, packed.parts.values(), strict=True))
    return guarded(kernel.entry_point(), rows, kernel.arguments(packed), parts, (*shape[:-1], out), bias)


def at_addresses(call: Prepared) -> Callable[[int, int, Tensor | None, Buffers], bool] | None:
    """`run(x, y, bias, buffers)` of a prepared call, from and to addresses of the caller's: float32 of the prepared sizes.

    It returns False where nothing was done and the call must be forgotten. None where nothing is prepared.
    """
    return None if call is unprepared else cast("Any", call).multiply_at


def guarded(
    run: Callable[..., None],
    rows: int,
    arguments: Sequence[Any],
    parts: Mapping[str, Tensor],
    size: Sequence[int],
    bias: Tensor | None,
    held: object = None,
) -> Prepared:
    """The prepared call itself, which `prepare` describes, for contiguous float32 inputs on the CPU.

    Args:
        run: `run(x, y, bias, rows, threads, *arguments)`, addresses as integers.
        parts: buffers by name that were checked, and are read for as long as they are these and were not written to.
        size: of the output.
        bias: None or a contiguous float32 vector; it may be written to, but none may come, go or take its place.
        held: whatever else the addresses in `arguments` belong to; it lives as long as the call.
    """
    module = cast("Any", native())
    reader = module.Reader(getattr(Tensor, "__dlpack_c_exchange_api__", None), torch.float32)
    asked = (run, tuple(arguments), tuple(parts), tuple(parts.values()), bias, tuple(size), rows, held)
    return module.Prepared(*asked, reader, torch.get_num_threads)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


class PreparedModule(nn.Module):
    """A layer that keeps prepared calls in `_calls`, which at few rows are as fast as their way: past `nn.Module.__call__`, which
    takes longer than all that is checked, as long as there is nothing for it to do (hooks, another `forward`, compilation).
    """

    _calls: Calls
    _prepares: ClassVar[Callable[..., Any]]
    """The `forward` that prepares calls, and runs those that it finds before all else; of subclasses with another, it is called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The prepared call for the input where there is one; else as of every module."""
        if len(args) == 1 and not kwargs and not is_dynamo_compiling():
            y = _enter(self, args[0])
            if y is not None:
                return y
        return super().__call__(*args, **kwargs)


def _entrance() -> Callable[[nn.Module, Any], Tensor | None]:
    module = native()
    if module is None:
        return lambda layer, x: None
    everywhere = tuple(getattr(torch.nn.modules.module, name) for name in _GLOBAL_HOOKS)
    module.open_entrance(Tensor, nn.Module, _HOOKS, everywhere, TRANSFORMS, torch.is_grad_enabled)
    return module.enter


_enter = _entrance()
