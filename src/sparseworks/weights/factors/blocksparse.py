"""A matrix of kept square blocks as an operator: products and gradients of the kept blocks only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.core.errors import ShapeError
from sparseworks.core.operator import OPERATORS, LinearOperator, Stored
from sparseworks.core.support import Support
from sparseworks.exec.training import SparseIndex, spmm
from sparseworks.exec.triton import on_gpu


@OPERATORS.register("block_sparse")
class BlockSparse(LinearOperator):
    """A matrix that is zero outside kept blocks of B x B: the blocks in row order, and one bit for every place of a block.

    On a CPU the products are those of `exec.training` on the kept entries, on a GPU those of `exec.triton.blocks` for blocks
    of 16 to 128; forward and backward cost time in proportion to the kept blocks, and no dense matrix or gradient is formed.
    """

    bits: Tensor

    def __init__(self, blocks: Float[Tensor, "kept B B"], grid: Support):
        """Args: `grid` says which blocks are kept, over (out / B, in / B).

        Raises:
            ShapeError: blocks that are not square, or not one for each kept place.
        """
        self.block = blocks.shape[-1]
        if blocks.dim() != 3 or blocks.shape != (grid.count, self.block, self.block):
            raise ShapeError(f"A grid of {grid.count} kept blocks cannot take blocks of shape {tuple(blocks.shape)}.")
        super().__init__(grid.shape[0] * self.block, grid.shape[1] * self.block)
        self.blocks = nn.Parameter(blocks)
        self.register_buffer("bits", grid.bits().to(blocks.device))
        self._known: tuple[Tensor, int, Any] | None = None

    @classmethod
    def of(cls, matrix: Float[Tensor, "out in"], grid: Support) -> Self:
        """The kept blocks of a matrix.

        Raises:
            ShapeError: the grid does not cut it into squares.
        """
        rows, cols = grid.shape
        if rows * matrix.shape[1] != cols * matrix.shape[0] or matrix.shape[0] % rows:
            raise ShapeError(f"A grid of {rows} x {cols} does not cut a matrix of {tuple(matrix.shape)} into squares.")
        return cls(_tiles(matrix, matrix.shape[0] // rows)[grid.mask().to(matrix.device)], grid)

    @property
    def grid(self) -> Support:
        """Which blocks are kept."""
        return Support.from_bits(self.bits, (self.out_features // self.block, self.in_features // self.block))

    @property
    def support(self) -> Support:
        """Which entries are kept."""
        return Support.from_mask(_entries(self.grid.mask(), self.block))

    def product(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """x A^T over the kept blocks."""
        flat = x.reshape(-1, self.in_features)
        if on_gpu(flat) and self.block in (16, 32, 64, 128):
            from sparseworks.exec.triton.blocks import block_linear

            y = block_linear(flat.contiguous(), self.blocks, self._cached(self._layout))
        else:
            index, order = self._cached(self._index)
            y = spmm(flat, self.blocks.flatten()[order], None, index)
        return y.reshape(*x.shape[:-1], self.out_features)

    def dense(self) -> Float[Tensor, "out in"]:
        """The blocks put at their places."""
        rows, cols = self.out_features // self.block, self.in_features // self.block
        at = self.grid.mask().flatten().nonzero().flatten().to(self.blocks.device)
        tiles = self.blocks.new_zeros(rows * cols, self.block, self.block).index_put((at,), self.blocks)
        return (
            tiles.view(rows, cols, self.block, self.block).transpose(1, 2).reshape(self.out_features, self.in_features)
        )

    def _cached(self, made: Any) -> Any:
        """What is derived of the bits; made again whenever these are other ones."""
        if self._known is None or self._known[0] is not self.bits or self._known[1] != self.bits._version:
            self._known = self.bits, self.bits._version, made()
        return self._known[2]

    def _index(self) -> tuple[SparseIndex, Tensor]:
        """The kept entries as `spmm` takes them, and which entry of `blocks` each is."""
        mask, b = self.grid.mask(), self.block
        index = SparseIndex.of(self.support)
        row, col = (t.long() for t in index.forward.coordinates())
        number = (mask.flatten().cumsum(0) - 1).view(mask.shape)
        return index, (number[row // b, col // b] * b * b + row % b * b + col % b).to(self.blocks.device)

    def _layout(self) -> Any:
        from sparseworks.exec.triton.blocks import Layout

        ptr, columns = (t.to(self.blocks.device) for t in self.grid.indices())
        return Layout.of((self.out_features, self.in_features), self.block, ptr, columns)

    @property
    def stored(self) -> Stored:
        """The kept blocks, and a bit for every place of one."""
        return Stored(self.blocks.numel(), self.grid.size)

    @property
    def macs(self) -> int:
        """One multiplication a kept entry."""
        return self.blocks.numel()

    def metadata(self) -> dict[str, Any]:
        """Grid, block and number of kept blocks."""
        return {"grid": list(self.grid.shape), "block": self.block, "kept": len(self.blocks)}

    @classmethod
    def empty(cls, meta: Mapping[str, Any]) -> Self:
        """Of that grid, with as many blocks at the first places."""
        (rows, cols), kept, b = meta["grid"], int(meta["kept"]), int(meta["block"])
        first = torch.arange(rows * cols).view(rows, cols) < kept
        return cls(torch.empty(kept, b, b), Support.from_mask(first))


def fresh_blocks(grid: Support, block: int, generator: torch.Generator | None = None) -> BlockSparse:
    """Uniform in +-1 / sqrt(in), times sqrt(columns / kept columns) of its row of blocks: the variance of a dense layer's outputs.

    Source: the released code of Chen, Dao et al., 2021, arXiv 2112.00029.
    """
    mask = grid.mask()
    cols, kept = mask.shape[1], mask.sum(dim=1).clamp(min=1)
    scale = (cols / kept).sqrt() / (cols * block) ** 0.5
    rows = mask.nonzero()[:, 0]
    values = 2 * torch.rand(grid.count, block, block, generator=generator) - 1
    return BlockSparse(values * scale[rows, None, None], grid)


def _tiles(matrix: Float[Tensor, "out in"], block: int) -> Float[Tensor, "rows cols B B"]:
    out, width = matrix.shape
    return matrix.reshape(out // block, block, width // block, block).transpose(1, 2)


def _entries(mask: Bool[Tensor, "rows cols"], block: int) -> Bool[Tensor, "out in"]:
    return mask.repeat_interleave(block, 0).repeat_interleave(block, 1)
