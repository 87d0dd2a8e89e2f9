"""Kernels of the compiled extension. A packed form is checked once, so that damaged buffers raise instead of being followed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sparseworks.core.errors import KernelError
from sparseworks.exec.format import Packed, damaged, inspecting
from sparseworks.exec.format import number as number
from sparseworks.exec.kernel import Call, Kernel
from sparseworks.exec.native import native, why_missing

Arguments = tuple[Any, ...]
_TINY = 1e-30  # of a row that is nowhere larger, the levels could not be told apart in float32
_Known = tuple[list[weakref.ref[Tensor]], list[int], tuple[int, int], Any, Arguments]


class CheckedKernel(Kernel):
    """A kernel that follows addresses: each packed form is inspected once, before its buffers are first followed.

    Subclasses say, in `inspect`, which buffers they may follow.
    """

    def __init__(self, name: str, value_dtype: torch.dtype):
        self.name, self.value_dtype = name, value_dtype
        self._checked: dict[int, _Known] = {}

    def inspect(self, packed: Packed) -> Arguments:
        """What the kernel needs beyond x and bias, after checking every buffer."""
        raise NotImplementedError

    def arguments(self, packed: Packed) -> Arguments:
        """What `inspect` gives, once per packed form: kept until a buffer is replaced or written to.

        Raises:
            KernelError: another format or type, or damaged buffers.
        """
        parts = list(packed.parts.values())
        if not parts:
            raise damaged(packed, "it has no parts")
        key, meta = id(parts[0]), packed.meta
        now = stamp(parts)
        known = self._checked.get(key)
        same = known is not None and known[0][0]() is parts[0] and known[1] == now and known[2] == packed.shape
        if known is not None and same and (known[3] is meta or known[3] == meta):
            return known[4]
        if packed.format != self.format or packed.dtype is not self.value_dtype:
            wanted = f"{self.format!r} in {self.value_dtype}"
            raise KernelError(f"Kernel {self.name!r} reads {wanted}, not {packed.format!r} in {packed.dtype}.")
        with inspecting(packed):
            found = self.inspect(packed)
        # When any part is gone, another may come to lie at its address.
        forget = [weakref.ref(t, lambda _: self._checked.pop(key, None)) for t in parts]
        self._checked[key] = (forget, now, packed.shape, meta, found)
        return found


class NativeKernel(CheckedKernel):
    """A kernel of the extension: float32 input and output on the CPU, values in the type that the subclass names.

    Subclasses name the format and the entry point; what they inspect are sizes and addresses.
    """

    entry: ClassVar[str]

    def __init__(self, name: str, value_dtype: torch.dtype):
        super().__init__(name, value_dtype)
        self._run: Callable[..., None] | None = None

    def refuses(self, call: Call) -> str | None:
        """No extension, another device, or an input that is not float32."""
        if call.device != "cpu":
            return f"it runs on the CPU, not on {call.device}"
        if call.dtype is not torch.float32:
            return f"it takes float32 inputs, not {str(call.dtype).removeprefix('torch.')}"
        return why_missing()

    def __call__(
        self, x: Float[Tensor, "rows in"], packed: Packed, bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "rows out"]:
        """x W^T + bias.

        Raises:
            KernelError: input, bias or buffers that the kernel cannot read.
        """
        return self.multiply(x, packed, bias)

    def multiply(
        self, x: Float[Tensor, "rows in"], packed: Packed, bias: Float[Tensor, " out"] | None, last: Arguments = ()
    ) -> Float[Tensor, "rows out"]:
        """x W^T + bias, with `last` in the place of the last arguments that `inspect` gives.

        Raises:
            KernelError: input, bias or buffers that the kernel cannot read.
        """
        out, width = packed.shape
        rows, *rest = x.shape
        if rest != [width] or x.dtype is not torch.float32 or not x.is_contiguous() or not x.is_cpu:
            raise KernelError(f"Kernel {self.name!r} takes a contiguous float32 (rows, {width}), got {facts(x)}.")
        if bias is not None and not (bias.dtype is torch.float32 and bias.shape == (out,) and bias.is_contiguous()):
            raise KernelError(f"Kernel {self.name!r} takes a contiguous float32 bias ({out},), got {facts(bias)}.")
        arguments = self.arguments(packed)
        if last:
            arguments = (*arguments[: -len(last)], *last)
        y = torch.empty((rows, out), dtype=torch.float32, device="cpu")
        if rows == 0 or out == 0 or width == 0:
            return y.copy_(torch.zeros(()) if bias is None else bias)
        self.entry_point()(
            x.data_ptr(),
            y.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            rows,
            torch.get_num_threads(),
            *arguments,
        )
        return y

    def entry_point(self) -> Callable[..., None]:
        """The function of the extension: `(x, y, bias, rows, threads, *arguments)`, addresses as integers.

        Raises:
            KernelError: there is no extension.
        """
        if self._run is not None:
            return self._run
        module = native()
        if not isinstance(module, ModuleType):
            raise KernelError(f"Kernel {self.name!r} cannot run: {why_missing()}.")
        run: Callable[..., None] = getattr(module, self.entry)
        self._run = run
        return run


def stamp(parts: list[Tensor]) -> list[int]:
    """Changes when a buffer is replaced or written to (inference tensors keep no count of writes)."""
    return [t.data_ptr() for t in parts] + [t._version for t in parts if not t.is_inference()]


def part(packed: Packed, name: str, dtype: torch.dtype, *shape: int | None, device: str | None = "cpu") -> Tensor:
    """The part called `name`, contiguous, of type `dtype`, of `shape` (None: any size) and on `device` (None: any).

    Raises:
        KernelError: it is missing or different.
    """
    found = packed.parts.get(name)
    if found is None:
        raise damaged(packed, f"it has no part {name!r}")
    fits = found.dim() == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=False))
    there = device in (None, found.device.type)
    if not (fits and found.dtype is dtype and there and found.is_contiguous()):
        want = tuple("any" if s is None else s for s in shape)
        raise damaged(packed, f"part {name!r} should be a contiguous {dtype} of shape {want}, is {facts(found)}")
    return found


def scale_address(packed: Packed) -> int:
    """Where the scale of each output row of int8 values lies; 0 for other types.

    Raises:
        KernelError: it is missing or different.
    """
    return part(packed, "scale", torch.float32, packed.shape[0]).data_ptr() if packed.dtype is torch.int8 else 0


def rounded_rows(x: Float[Tensor, "rows in"], limit: int) -> Float[Tensor, "rows in"]:
    """x_mk = round(limit x_mk / most_m) most_m / limit with most_m = max_k |x_mk|: fixed point as the kernels round it."""
    most = x.float().abs().amax(dim=-1, keepdim=True) if x.numel() else x.new_zeros(x.shape[0], 1)
    inverse = torch.where(most > _TINY, torch.full_like(most, float(limit)) / most, 0.0)
    return ((x.float() * inverse).round() * (most / float(limit))).to(x.dtype)


def pointers(packed: Packed, segments: int, entries: int, multiple: int = 1) -> Tensor:
    """The part `ptr`: from 0 to at most `entries`, never falling, multiples of `multiple`.

    Raises:
        KernelError: otherwise.
    """
    ptr = part(packed, "ptr", torch.int32, segments + 1)
    steps = ptr.long().diff()  # in 32 bits a fall of more than 2^31 would be a rise
    good = int(ptr[0]) == 0 and int(ptr[-1]) == entries and not bool((steps < 0).any() or (ptr % multiple).any())
    if not good:
        raise damaged(packed, f"'ptr' should rise from 0 to {entries} in steps that are multiples of {multiple}")
    return ptr


def below(packed: Packed, name: str, values: Tensor, limit: int | Tensor) -> None:
    """Every one of `values` (unsigned) lies below `limit`.

    Raises:
        KernelError: otherwise.
    """
    if bool((values >= limit).any()):
        raise damaged(packed, f"part {name!r} holds indices beyond the matrix")


def population(bits: UInt8[Tensor, "rows bytes"]) -> Int[Tensor, " rows"]:
    """Bits set in each row."""
    counts = torch.tensor([i.bit_count() for i in range(256)], dtype=torch.uint8)
    return counts[bits.long()].sum(dim=1, dtype=torch.long)


def facts(t: Tensor) -> str:
    """A tensor in the words of an error message: layout, type, shape, device."""
    layout = "" if t.is_contiguous() else "non-contiguous "
    return f"{layout}{str(t.dtype).removeprefix('torch.')} of shape {tuple(t.shape)} on {t.device}"
