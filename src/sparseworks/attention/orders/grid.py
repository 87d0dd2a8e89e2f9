"""Orders on the grid of a clip: cells of a frame side by side; places before frames. Text goes last in all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.attention.heads import Clip, Heads
from sparseworks.attention.order import ORDERS, Order
from sparseworks.core.errors import PatternError
from sparseworks.core.pattern import Tile


@ORDERS.register("cells")
@dataclass(frozen=True)
class Cells(Order):
    """Frames cut into cells of height x width tokens, the tokens of a cell side by side; text last.

    Cells are whole units where they divide the frame and hold as many tokens as a unit (Shen et al. 2025, arXiv 2505.14708: 8 x 16).
    """

    height: int = 8
    width: int = 16

    def __post_init__(self):
        if min(self.height, self.width) < 1:
            raise PatternError(f"A cell holds at least one token, got {self.height} x {self.width}.")

    def __call__(self, heads: Heads) -> tuple[Int[Tensor, "1 1 queries"], Int[Tensor, "1 1 keys"]] | None:
        """The same for all heads; None where there is no clip."""
        if heads.clip is None:
            return None
        t, y, x = places(heads.clip)
        across = -(-heads.clip.width // self.width)
        cell = (t * heads.clip.height + y // self.height) * across + x // self.width
        order = text_last(heads.clip, cell.argsort(stable=True))[None, None]
        return order, order


def places(clip: Clip) -> Int[Tensor, "3 tokens"]:
    """Frame, row and column of every token of the clip, text left out."""
    axes = [torch.arange(n) for n in (clip.frames, clip.height, clip.width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


def text_last(clip: Clip, order: Int[Tensor, "*some tokens"]) -> Int[Tensor, "*some keys"]:
    """An order of the clip's tokens, text behind them."""
    text = torch.arange(clip.text, device=order.device).expand(*order.shape[:-1], -1)
    return torch.cat([order + clip.text, text], -1)


def text_units(heads: Heads, unit: Tile) -> Bool[Tensor, "rows columns"]:
    """Units with a token of text, where text lies last."""
    first = heads.keys - (heads.clip.text if heads.clip is not None else 0)
    rows, columns = (torch.tensor(c).view(-1, 2)[:, 1] > first
                     for c in (heads.rows_of(unit.rows), heads.columns_of(unit.cols)))  # fmt: skip
    return (rows[:, None] | columns).to(heads.q.device)
