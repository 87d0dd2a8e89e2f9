"""Format: how the kept weights lie in memory. It packs a given support and never chooses one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.registry import Registry
from sparseworks.core.support import Support

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

    @property
    def device(self) -> torch.device:
        """Where the parts lie."""
        return next(iter(self.parts.values())).device

    def to(self, device: torch.device | str) -> Packed:
        """The same form with its parts on `device`."""
        parts = {name: t.to(device) for name, t in self.parts.items()}
        return Packed(self.format, self.shape, self.dtype, parts, self.meta)


class Format(ABC):
    """`pack(weight, support) -> Packed`, `unpack(packed) -> (weight, support)`: inverses up to `rounded`, exact on the support."""

    registered_name: ClassVar[str]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16)

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """Why this format cannot hold `support` with values of `dtype`, or None. Subclasses call this first."""
        if len(support.shape) != 2:
            return f"it packs matrices, not {len(support.shape)} dimensions"
        if dtype not in self.dtypes:
            known = ", ".join(str(d).removeprefix("torch.") for d in self.dtypes)
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
        return weight.to(dtype)

    @abstractmethod
    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of `pack(weight, support)`, without packing."""
