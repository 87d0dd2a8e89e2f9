"""Taps: the kept entries of a kernel as offsets into a padded map, checked once before the extension follows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.core.errors import KernelError
from sparseworks.exec.formats.taps import check
from sparseworks.exec.window import Window

_NEAR_BYTES = 24 << 10
"""What one tile of a block of channels may take of the first-level cache; the rest is for entries and sums."""
_TILE = 96
"""Positions that the kernel sums at once."""
_INT32 = (1 << 31) - 1


@dataclass(frozen=True)
class Layout:
    """Where the taps of a map of one size lie: planes [channel][phase of the strides][row][column], see cpp/conv/conv.h.

    Attributes:
        window: how the kernel moves.
        channels: of the input.
        size: height and width of the input.
    """

    window: Window
    channels: int
    size: tuple[int, int]

    @property
    def phases(self) -> tuple[int, int]:
        """Phases that any tap reads."""
        w = self.window
        high, wide = (min(s, (k - 1) * d + 1) for s, k, d in zip(w.stride, w.kernel, w.dilation, strict=True))
        return high, wide

    @property
    def pitch(self) -> int:
        """Floats from row to row. Without a stride the zeros to the right of a row are those to the left of the next."""
        wide = self.window.outputs(self.size)[1]
        if self.window.stride[1] == 1:
            return max(wide, self.size[1] + self.window.padding[1])
        return wide + self._reach(1)

    @property
    def plane(self) -> int:
        """Floats of a plane: up to the last one that a tap reads."""
        high, wide = self.window.outputs(self.size)
        return (high - 1 + self._reach(0)) * self.pitch + wide + self._reach(1)

    @property
    def floats(self) -> int:
        """Floats of a whole map."""
        return self.channels * self.phases[0] * self.phases[1] * self.plane

    @property
    def block(self) -> int:
        """Channels whose part of a tile stays in the first-level cache, evenly divided."""
        span = min(self.plane, _TILE + self._reach(0) * self.pitch + self._reach(1))
        most = max(1, _NEAR_BYTES // (4 * span * self.phases[0] * self.phases[1]))
        return ceil(self.channels / ceil(self.channels / most)) if self.channels else 1

    def offsets(self, columns: Int[Tensor, " kept"]) -> Int[Tensor, " kept"]:
        """Where each entry starts; `columns` count taps within channels."""
        w, (ph, pw) = self.window, self.phases
        taps = w.kernel[0] * w.kernel[1]
        channel, tap = columns // taps, columns % taps
        dy, dx = tap // w.kernel[1] * w.dilation[0], tap % w.kernel[1] * w.dilation[1]
        plane = (channel * ph + dy % w.stride[0]) * pw + dx % w.stride[1]
        return plane * self.plane + dy // w.stride[0] * self.pitch + dx // w.stride[1]

    @property
    def numbers(self) -> list[int]:
        """The numbers of the struct of this name in conv.h."""
        w = self.window
        return [self.channels, *self.size, *w.stride, *w.padding, *self.phases, self.pitch, self.plane]

    def _reach(self, axis: int) -> int:
        w = self.window
        return (w.kernel[axis] - 1) * w.dilation[axis] // w.stride[axis]


@dataclass(frozen=True)
class TapOffsets:
    """The entries of a kernel for maps of one size.

    Attributes:
        starts: where the entries of each block of channels and output begin.
        offsets: where each entry starts in the padded map.
        size: height and width of the output.
        numbers: blocks, and those of the layout.
    """

    size: tuple[int, int]
    numbers: list[int]
    starts: Int[Tensor, "blocks+1 out"]
    offsets: Int[Tensor, " kept"]


def taps_of(parts: Mapping[str, Tensor], out: int, layout: Layout) -> TapOffsets:
    """Check every buffer, and find the taps for maps of one size.

    Raises:
        KernelError: damaged buffers, or a map too large for 32-bit offsets.
    """
    check(parts, out, layout.channels * layout.window.kernel[0] * layout.window.kernel[1])
    if layout.floats > _INT32:
        raise KernelError(f"A map of {layout.floats} floats is beyond 32-bit offsets; split it.")
    ptr, columns = parts["ptr"].long(), parts["columns"].long()
    rows = torch.repeat_interleave(torch.arange(out), ptr.diff())
    keys = rows * layout.channels + columns // (layout.window.kernel[0] * layout.window.kernel[1])
    blocks = max(1, ceil(layout.channels / layout.block))  # even without inputs, a block is what writes the bias
    edges = torch.arange(blocks + 1).mul_(layout.block).clamp_(max=layout.channels)
    starts = torch.searchsorted(keys, torch.arange(out) * layout.channels + edges[:, None])
    return TapOffsets(
        layout.window.outputs(layout.size), [blocks, *layout.numbers], starts.int(), layout.offsets(columns).int()
    )
