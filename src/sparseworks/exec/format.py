"""Format: how the kept weights lie in memory. It packs a given support and never chooses one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import KernelError
from sparseworks.core.registry import Registry
from sparseworks.core.support import Support
from sparseworks.exec.int8 import from_int8, to_int8

FORMATS: Registry[Format] = Registry("format")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Value types of the formats that kernels for GPUs read."""


@dataclass(frozen=True)
class Packed:
    """One packed weight.

    Attributes:
        format: registered name of the format.
        shape: `(out, in)` of the dense weight.
        dtype: type of the stored values.
        parts: named tensors; together with `meta` everything a kernel needs.
        meta: plain JSON-able facts (tile sizes, counts).
    """

    format: str
    shape: tuple[int, int]
    dtype: torch.dtype
    parts: Mapping[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(t.numel() * t.element_size() for t in self.parts.values())

    def unpack(self) -> tuple[Float[Tensor, "out in"], Support]:
        """`Format.unpack` of the form's own format, for parts that may come from a damaged file; on the CPU.

        Raises:
            KernelError: the parts do not fit together.
        """
        kind = FORMATS.get(self.format)
        with inspecting(self):
            longest = max((t.numel() for t in self.parts.values()), default=0)
            ptr = self.parts.get("ptr")
            if ptr is not None and ptr.numel() and not 0 <= int(ptr.min()) <= int(ptr.max()) <= longest:
                raise damaged(self, "'ptr' points outside the other parts")  # before as many entries are made of it
            weight, support = kind.unpack(self.to("cpu"))
        if not tuple(weight.shape) == tuple(support.shape) == self.shape:
            raise damaged(self, f"it unpacks to a weight of {tuple(weight.shape)} and a support of {support.shape}")
        return weight, support

    @property
    def device(self) -> torch.device:
        """Where the parts lie."""
        return next(iter(self.parts.values())).device

    def to(self, device: torch.device | str) -> Packed:
        """The same form with its parts on `device`."""
        parts = {name: t.to(device) for name, t in self.parts.items()}
        return Packed(self.format, self.shape, self.dtype, parts, self.meta)


def name_of(dtype: torch.dtype) -> str:
    """Its name as an attribute of torch: "float32"."""
    return str(dtype).removeprefix("torch.")


def damaged(packed: Packed, reason: str) -> KernelError:
    """The error for a form whose buffers do not fit together."""
    size = "x".join(map(str, packed.shape))
    return KernelError(f"A {size} weight packed as {packed.format!r} is damaged: {reason}. Pack or load it anew.")


def number(packed: Packed, name: str, least: int, most: int) -> int:
    """The whole number called `name` in the meta data, within bounds.

    Raises:
        KernelError: it is missing or out of range.
    """
    found = packed.meta.get(name)
    if not isinstance(found, int) or not least <= found <= most:
        raise damaged(packed, f"{name!r} should be a whole number from {least} to {most}, is {found!r}")
    return found


@contextmanager
def inspecting(packed: Packed) -> Iterator[None]:
    """Whatever goes wrong while the parts of `packed` are looked at is damage.

    Raises:
        KernelError: in place of what torch and Python say to sizes, types and indices that do not fit.
    """
    try:
        yield
    except KernelError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, MemoryError) as error:
        raise damaged(
            packed, f"{type(error).__name__}, {str(error).splitlines()[0] if str(error) else 'no reason'}"
        ) from error


class Format(ABC):
    """`pack(weight, support) -> Packed`, `unpack(packed) -> (weight, support)`: inverses up to `rounded`, exact on the support."""

    registered_name: ClassVar[str]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16)

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """Why this format cannot hold `support` with values of `dtype`, or None. Subclasses call this first."""
        if len(support.shape) != 2:
            return f"it packs matrices, not {len(support.shape)} dimensions"
        if dtype not in self.dtypes:
            known = ", ".join(name_of(d) for d in self.dtypes)
            return f"it stores {known}, not {str(dtype).removeprefix('torch.')}"
        return None

    @abstractmethod
    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """The kept entries of `weight`, also those that happen to be zero.

        Raises:
            KernelError: `refuses` gives a reason.
            ShapeError: weight and support differ in shape.
        """

    @abstractmethod
    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """The dense weight (exact zeros outside the support) in the stored type (float32 for whole numbers), and the support exactly."""

    def rounded(self, weight: Float[Tensor, "out in"], dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """What `unpack` gives back for the kept entries of `weight` stored as `dtype`."""
        return from_int8(*to_int8(weight)) if dtype is torch.int8 else weight.to(dtype)

    @abstractmethod
    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of `pack(weight, support)`, without packing."""
