"""Kernel: multiplies with one packed form. It says which calls it refuses and why, and equals its torch reference."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.registry import Registry
from sparseworks.exec.format import Packed
from sparseworks.exec.row import rows_text
from sparseworks.exec.window import Window

if TYPE_CHECKING:
    from sparseworks.exec.cost import Cost

KERNELS: Registry[Kernel] = Registry("kernel")


@dataclass(frozen=True)
class Maps:
    """What a convolution reads: so many images of one size, and how its kernel moves over them."""

    images: int
    size: tuple[int, int]
    window: Window

    @property
    def positions(self) -> int:
        """Positions of all output maps."""
        return self.images * prod(self.window.outputs(self.size))

    def __str__(self) -> str:
        """ "16 images of 28x28"."""
        return f"{self.images} image{'s' * (self.images != 1)} of {self.size[0]}x{self.size[1]}"


@dataclass(frozen=True)
class Call:
    """What a kernel is asked to do.

    Attributes:
        rows: rows of the input (tokens; positions of the output maps of a convolution).
        shape: `(out, in)` of the weight, for a convolution the matrix `(out, taps * in)`.
        density: share of weights kept.
        dtype: type of the input.
        threads: CPU threads.
        device: device type, "cpu" or "cuda".
        maps: of a convolution, where their size is known.
    """

    rows: int
    shape: tuple[int, int]
    density: float = 1.0
    dtype: torch.dtype = torch.float32
    threads: int = 1
    device: str = "cpu"
    maps: Maps | None = None

    @property
    def entries(self) -> int:
        """Numbers of the input and of the output together."""
        out, width = self.shape
        if self.maps is None:
            return self.rows * (width + out)
        channels = width // prod(self.maps.window.kernel)
        return self.maps.images * prod(self.maps.size) * channels + self.rows * out

    def __str__(self) -> str:
        """How much input, for a sentence: "1 row", "64 rows", "16 images of 28x28"."""
        return str(self.maps or rows_text(self.rows))


class Kernel:
    """`kernel(x, packed, bias) -> x W^T + bias` for packed weights of one format and value type.

    A kernel with `of_maps` convolves instead: `x` and what it returns are maps, (images, channels, height, width).

    Attributes:
        name: registered name.
        format: registered name of the format it reads.
        value_dtype: type of the stored values it reads.
        dense_layer: it is torch's own product with the stored dense weight, what an unpruned layer runs.
        rate: operations it can do at best in the time of one in float32.
        cost: what the planner expects of it before timing; without one it is always timed.
        of_maps: it reads the maps of a convolution, not rows.
    """

    name: str
    format: str
    value_dtype: torch.dtype = torch.float32
    rate: float = 1.0
    dense_layer: bool = False
    cost: Cost | None = None
    of_maps: bool = False

    def refuses(self, call: Call) -> str | None:
        """The sentence shown to the user when this kernel cannot take `call`, or None."""
        raise NotImplementedError

    def __call__(
        self, x: Float[Tensor, "rows in"], packed: Packed, bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "rows out"]:
        """x W^T + bias; `x` is contiguous and of a type that `refuses` lets pass."""
        raise NotImplementedError

    def input_gradient(self, grad: Float[Tensor, "rows out"], packed: Packed) -> Float[Tensor, "rows in"]:
        """grad W; kernels that have no product with the packed form for it unpack the weight."""
        weight, _ = packed.unpack()
        wide = torch.promote_types(grad.dtype, weight.dtype)
        return (grad.to(wide) @ weight.to(grad.device, wide)).to(grad.dtype)

    def reference(
        self, x: Float[Tensor, "rows in"], packed: Packed, bias: Float[Tensor, " out"] | None
    ) -> Float[Tensor, "rows out"]:
        """The same with the unpacked weight: what the kernel must equal, and what runs where it refuses."""
        weight, _ = packed.unpack()
        return torch.nn.functional.linear(x, weight.to(x), bias)
