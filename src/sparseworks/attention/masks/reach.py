"""How far back a stack of layers sees through a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparseworks.attention.masks.base import Mask
from sparseworks.core.errors import ShapeError


def receptive_field(
    mask: Mask | Sequence[Mask], layers: int | None = None, *, tokens: int, block: int = 1, heads: int = 1
) -> int:
    """Blocks that the last block of queries depends on after the layers: |{j : (A_L ... A_1)_{last, j} > 0}|, A = I + kept blocks.

    The residual stream is the I; heads of a layer see for each other. Memory (tokens / block)^2 bools x heads.

    Args:
        mask: of every layer, or one mask a layer, the first layer first.
        layers: how many, where all have the same mask.
        tokens: of the sequence.
        block: tokens of a block; 1 counts tokens.

    Raises:
        ShapeError: no layers, no tokens, or `layers` beside one mask a layer.
    """
    if isinstance(mask, Mask):
        masks = [mask] * (layers or 0)
    elif layers is None:
        masks = list(mask)
    else:
        raise ShapeError("Give `layers` with one mask, or one mask a layer without `layers`.")
    if not masks or tokens < 1:
        raise ShapeError(
            f"A receptive field is that of at least one layer and one token, got {len(masks)} and {tokens}."
        )
    supports = {m: m.blocks(tokens, tokens, (block, block), heads).mask().any(0) for m in set(masks)}
    reached = torch.zeros(-(-tokens // block), dtype=torch.bool)
    reached[-1] = True
    for m in reversed(masks):
        reached = reached | supports[m][reached].any(0)
    return int(reached.sum())
