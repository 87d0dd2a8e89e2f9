"""To and from PyTorch's FlexAttention: masks as `BlockMask`s, `BlockMask`s and `mask_mod` functions as masks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseworks.attention.masks.base import Extent, Mask, Span
from sparseworks.core.errors import PatternError
from sparseworks.core.support import Support

_PAIRS = 1 << 20
"""Pairs asked for at a time."""


@dataclass(frozen=True)
class FromMod(Mask):
    """The pairs for which `mod(batch, head, query, key)` is true, for batch 0; query and key are absolute positions.

    A function says nothing about ranges, so blocks are found by asking for every pair: time O(n^2), memory O(n). It is called
    with tensors that broadcast. It is not registered: a function cannot be written into a recipe.

    Raises:
        PatternError: `mod` cannot be called.
    """

    mod: Callable[[Any, Any, Any, Any], Tensor]
    heads_differ: bool = False

    def __post_init__(self):
        if not callable(self.mod):
            raise PatternError(f"A mask_mod is a function of (batch, head, query, key), got {self.mod!r}.")

    @property
    def by_head(self) -> bool:
        """As told."""
        return self.heads_differ

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """mod(0, head, q, k)."""
        return self.mod(torch.zeros((), dtype=torch.long, device=q.device), head, q, k)

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Any pair of the block."""
        return self._each(rows, cols, head, extent, Tensor.any)

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Every pair of the block."""
        return self._each(rows, cols, head, extent, Tensor.all)

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """Every key is asked for."""
        keys = torch.arange(extent.keys)
        return keys[self.keeps(torch.tensor(q), keys, torch.tensor(head), extent).expand(keys.shape)]

    def _each(self, rows: Span, cols: Span, head: Tensor, extent: Extent, reduce: Callable[..., Tensor]) -> Tensor:
        k = _tokens(cols.first[0], cols.last[0])
        out = torch.zeros(len(head), len(rows.first), len(k), dtype=torch.bool)
        for i, (first, last) in enumerate(
            zip(rows.first.flatten().tolist(), rows.last.flatten().tolist(), strict=True)
        ):
            q = torch.arange(first, last + 1)[:, None, None]
            step = max(1, _PAIRS // (len(q) * k.shape[1] * len(head)))
            for j in range(0, len(k), step):
                some = k[j : j + step]
                kept = self.keeps(q, some, head[..., None], extent).expand(len(head), len(q), *some.shape)
                out[:, i, j : j + step] = reduce(reduce(kept, 3), 1)
        return out


def _tokens(first: Tensor, last: Tensor) -> Tensor:
    """(blocks, size): the positions of each; shorter ones repeat their last."""
    size = int((last - first).max()) + 1 if len(first) else 1
    return torch.minimum(first[:, None] + torch.arange(size), last[:, None])


class FlexBlocks(NamedTuple):
    """What a `BlockMask` says: kept blocks, blocks kept whole, tokens of a block, and all of it as a mask."""

    kept: Support
    whole: Support
    tile: tuple[int, int]
    mask: FromMod


def to_block_mask(
    mask: Mask,
    queries: int,
    keys: int,
    tile: tuple[int, int] = (128, 128),
    heads: int = 1,
    offset: int = 0,
    device: torch.device | str = "cpu",
) -> Any:
    """`torch.nn.attention.flex_attention.BlockMask`: blocks kept whole as full ones, the others with `mask_mod`.

    As PyTorch's own, shorter blocks at the ends are never full ones. Query i of the attention call sits at position `offset + i`. For the compiled kernel tiles are multiples of 128.

    Raises:
        ShapeError: sizes that are negative or that the mask is not made for.
    """
    from torch.nn.attention.flex_attention import BlockMask

    inside = torch.zeros(-(-queries // tile[0]), -(-keys // tile[1]), dtype=torch.bool)
    inside[: queries // tile[0], : keys // tile[1]] = True
    whole = Support.from_mask(mask.whole_blocks(queries, keys, tile, heads, offset).mask() & inside)
    partly = mask.blocks(queries, keys, tile, heads, offset) - whole
    lists = [t[None].to(device) for t in (*_padded(partly), *_padded(whole))]
    known = inspect.signature(BlockMask.from_kv_blocks).parameters
    sizes = {"seq_lengths": (queries, keys)} if "seq_lengths" in known else {}
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=tile, mask_mod=mask.mask_mod(keys, heads, offset), **sizes)


def from_block_mask(block_mask: Any) -> FlexBlocks:
    """The blocks of batch 0 of a FlexAttention `BlockMask`, and its pairs as a mask: full blocks, and `mask_mod` in the partial ones."""
    tall, wide = block_mask.BLOCK_SIZE
    cols = -(-block_mask.seq_lengths[1] // wide)
    partly = _from_lists(block_mask.kv_num_blocks[0], block_mask.kv_indices[0], cols)
    full = block_mask.full_kv_num_blocks
    whole = torch.zeros_like(partly) if full is None else _from_lists(full[0], block_mask.full_kv_indices[0], cols)
    both = torch.stack([whole, partly])

    def mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        all_of_it, some_of_it = both.to(q.device)[:, h if both.shape[1] > 1 else h * 0, q // tall, k // wide]
        return all_of_it | (some_of_it & block_mask.mask_mod(b, h, q, k))

    mask = FromMod(mod, heads_differ=both.shape[1] > 1)
    return FlexBlocks(Support.from_mask(whole | partly), Support.from_mask(whole), (tall, wide), mask)


def _padded(support: Support) -> tuple[Tensor, Tensor]:
    """int32 (heads, rows) counts and (heads, rows, cols) kept columns first, as FlexAttention lists blocks."""
    kept = support.mask()
    order = kept.byte().argsort(dim=-1, descending=True, stable=True)
    return kept.sum(-1, dtype=torch.int32), order.int()


def _from_lists(counts: Tensor, listed: Tensor, cols: int) -> Tensor:
    """(heads, rows, cols) of the first `counts` entries of the lists."""
    valid = torch.arange(listed.shape[-1], device=listed.device) < counts[..., None]
    times = torch.zeros(*listed.shape[:-1], cols, dtype=torch.int32, device=listed.device)
    return (times.scatter_add(-1, listed.long(), valid.int()) > 0).cpu()
