"""The kernels by format: which entry point of the extension reads it, and the bounds that make following its buffers safe."""

from __future__ import annotations

import torch

from sparseworks.core.grouped import choices
from sparseworks.exec.format import FORMATS, Packed, damaged
from sparseworks.exec.formats.balanced import SEGMENT
from sparseworks.exec.formats.bitmask import OVERREAD
from sparseworks.exec.formats.grid import block_sizes
from sparseworks.exec.formats.nmg import ordered_rows
from sparseworks.exec.formats.segments import from_u16, segment_of
from sparseworks.exec.int4 import GROUP, UINT4
from sparseworks.exec.kernel import KERNELS, Call
from sparseworks.exec.kernels.cpu import (
    Arguments,
    NativeKernel,
    below,
    number,
    part,
    pointers,
    population,
    rounded_rows,
    scale_address,
)
from sparseworks.exec.kernels.few_rows import MOST_ROWS

_BLOCK_MOST = 1 << 20


class TileKernel(NativeKernel):
    """Any support, many rows: lanes are tokens; per kept weight one broadcast and contiguous multiply-adds.

    K-blocks of a feature-major tile of up to 32 tokens stay in L1. Follows the 1x1 convolutions of Elsen et al.
    (2019, arXiv 1911.09723) and the forward pass of SparseProp (Nikdan et al. 2023, arXiv 2302.04852).
    """

    format = "tile"
    entry = "tile"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        row_block, k_block = block_sizes(packed)
        segments = out * -(-width // k_block)
        columns = part(packed, "columns", torch.uint8, None)
        values = part(packed, "values", self.value_dtype, columns.numel())
        ptr = pointers(packed, segments, columns.numel(), 2)
        rows = part(packed, "rows", torch.uint8, segments)
        height, room = _tile_limits(out, width, k_block, row_block)
        below(packed, "rows", rows, height)
        below(packed, "columns", columns, room[segment_of(ptr)])
        fits = (self.value_dtype is torch.bfloat16, *_addresses(ptr, columns, values, rows))
        return width, out, *fits, k_block, row_block


class PairsKernel(NativeKernel):
    """Pairs of adjacent inputs, many rows: two 16-bit products and their sum are one instruction, twice float32's rate.

    Each row of x is scaled to whole numbers of at most `limit`, so a row with an infinity or NaN gives NaN throughout.
    """

    format = "pairs"
    entry = "pairs"
    rate = 2.0

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        if width % 2:
            raise damaged(packed, f"{width} inputs are not pairs")
        row_block, k_block = block_sizes(packed)
        limit = number(packed, "limit", 1, (1 << 15) - 1)
        segments = out * -(-(width // 2) // k_block)
        columns = part(packed, "columns", torch.uint8, None)
        values = part(packed, "values", self.value_dtype, columns.numel(), 2)
        ptr = pointers(packed, segments, columns.numel(), 2)
        rows = part(packed, "rows", torch.uint8, segments)
        scale = part(packed, "scale", torch.float32, out)
        height, room = _tile_limits(out, width // 2, k_block, row_block)
        below(packed, "rows", rows, height)
        below(packed, "columns", columns, room[segment_of(ptr)])
        return width, out, *_addresses(ptr, columns, values, rows, scale), limit, k_block, row_block

    def reference(self, x: torch.Tensor, packed: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Kernel.reference`; with the inputs rounded as the kernel rounds them."""
        return super().reference(rounded_rows(x, number(packed, "limit", 1, (1 << 15) - 1)), packed, bias)


class PanelKernel(NativeKernel):
    """Adjacent outputs share columns, so one index and one input serve 16, 8 or 4 outputs (arXiv 2306.16601 uses 4)."""

    format = "panel"
    entry = "panel"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        height, k_block = number(packed, "height", 4, 16), number(packed, "k_block", 1, _BLOCK_MOST)
        if height not in (4, 8, 16):
            raise damaged(packed, f"'height' should be 4, 8 or 16, is {height}")
        panels, k_blocks = -(-out // height), -(-width // k_block)
        columns = part(packed, "columns", torch.int16, None)
        values = part(packed, "values", self.value_dtype, columns.numel(), height)
        ptr = pointers(packed, panels * k_blocks, columns.numel())
        block = segment_of(ptr) // max(panels, 1)
        local = from_u16(columns) - block * k_block
        below(packed, "columns", local, torch.clamp(width - block * k_block, max=k_block))
        below(packed, "columns", -local, 1)
        arrays = _addresses(ptr, columns, values)
        return width, out, self.value_dtype is torch.bfloat16, *arrays, height, k_block, scale_address(packed)


class CsrKernel(NativeKernel):
    """Any support, one row at a time: eight inputs gathered by scalar loads, which outruns AVX2's gather on Zen."""

    format = "csr16"
    entry = "csr"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        columns = part(packed, "columns", torch.int16, None)
        values = part(packed, "values", self.value_dtype, columns.numel())
        ptr = pointers(packed, out, columns.numel(), 8)
        below(packed, "columns", from_u16(columns), width)
        return (
            width,
            out,
            self.value_dtype is torch.bfloat16,
            *_addresses(ptr, columns, values),
            0,
            scale_address(packed),
        )


class FanInKernel(NativeKernel):
    """As `csr16`, with rows at a fixed stride instead of pointers."""

    format = "fanin"
    entry = "csr"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        columns = part(packed, "columns", torch.int16, out, None)
        slots = columns.shape[1]
        if slots % 8:
            raise damaged(packed, f"rows of {slots} slots are not padded to 8")
        values = part(packed, "values", self.value_dtype, out, slots)
        below(packed, "columns", from_u16(columns), width)
        return width, out, self.value_dtype is torch.bfloat16, 0, *_addresses(columns, values), slots, 0


class BalancedKernel(NativeKernel):
    """Equally many entries in each segment of 256 columns: as `csr16` with one-byte columns."""

    format = "balanced"
    entry = "segmented"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        starts = part(packed, "starts", torch.int32, -(-width // SEGMENT) + 1)
        columns = part(packed, "columns", torch.uint8, out, None)
        values = part(packed, "values", self.value_dtype, *columns.shape)
        steps = starts.diff()
        if int(starts[0]) or int(starts[-1]) != columns.shape[1] or bool((steps < 0).any() or (starts % 4).any()):
            raise damaged(packed, f"'starts' should rise from 0 to {columns.shape[1]} in multiples of 4")
        room = torch.clamp(width - torch.arange(steps.numel()) * SEGMENT, max=SEGMENT)
        below(packed, "columns", columns, room[segment_of(starts)])
        arrays = _addresses(starts, columns, values)
        return width, out, self.value_dtype is torch.bfloat16, *arrays, scale_address(packed)


class BitmaskKernel(NativeKernel):
    """Any support, few rows: eight packed values are spread over eight lanes by one table-driven shuffle."""

    format = "bitmask"
    entry = "bitmask"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        bits = part(packed, "bits", torch.uint8, out, -(-width // 32) * 4)
        values = part(packed, "values", self.value_dtype, None)
        ptr = pointers(packed, out, values.numel() - OVERREAD)
        counts = population(bits)
        if not torch.equal(counts, ptr.diff().long()):
            raise damaged(packed, "'ptr' does not count the bits of each row")
        arrays = _addresses(ptr, bits, values)
        return width, out, self.value_dtype is torch.bfloat16, *arrays, bits.shape[1], 0, scale_address(packed)


class NMKernel(NativeKernel):
    """N:M along the inputs: as `bitmask`, with values at a fixed stride."""

    format = "nm"
    entry = "bitmask"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        n, m = number(packed, "n", 1, 8), number(packed, "m", 2, 8)
        per_row = width // m * n
        bits = part(packed, "bits", torch.uint8, out, -(-width // 8))
        values = part(packed, "values", self.value_dtype, out * per_row + OVERREAD)
        if bool((population(bits) != per_row).any()):
            raise damaged(packed, f"a row does not keep {n} of every {m} inputs")
        return width, out, self.value_dtype is torch.bfloat16, 0, *_addresses(bits, values), bits.shape[1], per_row, 0


class NMGKernel(NativeKernel):
    """n:m:g, many rows: the inputs of a choice are loaded once for g outputs (Ivanov et al. 2023, arXiv 2304.07613)."""

    format = "nmg"
    entry = "nmg"

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        n, m, g, order = ordered_rows(packed)
        rows = part(packed, "rows", packed.parts["rows"].dtype, *order.shape)
        values = part(packed, "values", self.value_dtype, *order.shape, n)
        table = choices(n, m)  # kept alive by the cache of `choices`
        arrays = _addresses(table, rows, values)
        return width, out, self.value_dtype is torch.bfloat16, *arrays, n, m, g, table.shape[0]


def _addresses(*tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in tensors)


class Groups4Kernel(NativeKernel):
    """Runs of 16 inputs in four bits, few rows: a run is widened once for up to four rows (GQSA, arXiv 2412.17560)."""

    format = "groups4"
    entry = "groups4"

    def refuses(self, call: Call) -> str | None:
        """See `NativeKernel.refuses`; also more rows than widening pays for."""
        if call.rows > MOST_ROWS:
            return (
                f"it widens the weights once for every four rows, so it takes up to {MOST_ROWS} rows, not {call.rows}"
            )
        return super().refuses(call)

    def inspect(self, packed: Packed) -> Arguments:
        """See `NativeKernel.inspect`."""
        out, width = packed.shape
        if width % GROUP:
            raise damaged(packed, f"{width} inputs are not runs of {GROUP}")
        wide = packed.parts["columns"].dtype is torch.int16
        columns = part(packed, "columns", torch.int16 if wide else torch.uint8, None)
        runs = columns.numel()
        codes = part(packed, "codes", torch.uint8, runs, GROUP // 2)
        scale = part(packed, "scale", torch.float16, runs)
        zero = part(packed, "zero", torch.uint8, runs)
        ptr = pointers(packed, out, runs)
        below(packed, "columns", columns.int(), width // GROUP)  # 256 is no number of eight bits
        below(packed, "columns", -columns.int(), 1)
        return width, out, *_addresses(ptr, codes, scale, zero, columns), wide


def _tile_limits(out: int, width: int, k_block: int, row_block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Per segment, in storage order: rows in its row block, columns in its K-block."""
    k_blocks = -(-width // k_block)
    heights, rooms = [], []
    for first in range(0, out, row_block):
        height = min(row_block, out - first)
        heights.append(torch.full((height * k_blocks,), height))
        rooms.append(torch.clamp(width - torch.arange(k_blocks) * k_block, max=k_block).repeat_interleave(height))
    empty = [torch.zeros(0, dtype=torch.long)]
    return torch.cat(heights or empty), torch.cat(rooms or empty)


KERNELS.register("pairs-int16")(PairsKernel("pairs-int16", torch.int16))
KERNELS.register("groups4-int4")(Groups4Kernel("groups4-int4", UINT4))
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
for _kind in (TileKernel, PanelKernel, CsrKernel, FanInKernel, BalancedKernel, BitmaskKernel, NMKernel, NMGKernel):
    for _suffix, _dtype in _TYPES.items():
        if _dtype in FORMATS.get(_kind.format).dtypes:
            KERNELS.register(f"{_kind.format}-{_suffix}")(_kind(f"{_kind.format}-{_suffix}", _dtype))
