"""A picture of a mask: its blocks, one panel a head."""

from __future__ import annotations

from typing import Any

from sparseworks.attention.masks.base import Mask
from sparseworks.core.errors import ShapeError

_COLOURS = "#f2f3f5", "#9cc3f0", "#2f7ed8"
"""Nothing kept, some pairs, all pairs."""


def draw(mask: Mask, tokens: int = 1024, tile: tuple[int, int] = (64, 64), heads: int = 1) -> Any:
    """A `matplotlib.figure.Figure`: keys to the right, queries downwards, light where a block is kept in part.

    Masks that are alike in all heads have one panel, others one each, at most eight in a row.

    Raises:
        ShapeError: no tokens, or heads that the mask is not made for.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    if tokens < 1:
        raise ShapeError(f"There is nothing to draw of {tokens} tokens.")
    kept = mask.blocks(tokens, tokens, tile, heads, exact=True)
    whole = mask.whole_blocks(tokens, tokens, tile, heads, exact=True)
    levels = kept.mask().int() + whole.mask().int()
    across = min(8, len(levels))
    down = -(-len(levels) // across)
    figure = Figure(figsize=(2.4 * across + 0.6, 2.4 * down + 0.4), layout="constrained")
    for i, (axes, panel) in enumerate(zip(figure.subplots(down, across, squeeze=False).flat, levels, strict=False)):
        axes.imshow(
            panel.numpy(), cmap=ListedColormap(_COLOURS), vmin=0, vmax=2, extent=(0, tokens, tokens, 0), aspect="equal"
        )
        share = float((panel > 0).float().mean())
        axes.set_title(f"{'all heads' if len(levels) == 1 else f'head {i}'}, {share:.0%} of blocks", fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in list(figure.axes)[len(levels) :]:
        axes.remove()
    figure.supxlabel("key", fontsize=8)
    figure.supylabel("query", fontsize=8)
    return figure
