"""A mask for each head, or for each group of heads that share keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseworks.attention.masks.base import MASKS, Extent, Mask, Span
from sparseworks.attention.masks.windows import Causal, Window
from sparseworks.core.errors import PatternError, ShapeError


@MASKS.register("per_head")
@dataclass(frozen=True)
class PerHead(Mask):
    """Mask number h // (heads / masks) for head h: one each, or one for each group of heads that share keys."""

    masks: tuple[Mask, ...]

    def __post_init__(self):
        object.__setattr__(self, "masks", tuple(self.masks))
        if not self.masks:
            raise PatternError("PerHead has at least one mask.")

    @classmethod
    def example(cls) -> PerHead:
        """Two heads."""
        return cls((Causal(), Window(3)))

    @property
    def parts(self) -> tuple[Mask, ...]:
        """The masks."""
        return self.masks

    @property
    def by_head(self) -> bool:
        """Heads differ."""
        return True

    def check(self, end: int, extent: Extent) -> None:
        """Heads must be a multiple of the masks."""
        if extent.heads % len(self.masks):
            raise ShapeError(
                f"{extent.heads} heads cannot share {len(self.masks)} masks; give `heads` a multiple of it."
            )
        super().check(end, extent)

    def keeps(self, q: Tensor, k: Tensor, head: Tensor, extent: Extent) -> Tensor:
        """Pointwise, so that heads may come in any shape."""
        which = head // (extent.heads // len(self.masks))
        kept = self.masks[0].keeps(q, k, head, extent)
        for i, mask in enumerate(self.masks[1:], 1):
            kept = torch.where(which == i, mask.keeps(q, k, head, extent), kept)
        return kept

    def some(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Head by head."""
        return self._stacked(head, extent, lambda m, h: m.some(rows, cols, h, extent), rows, cols)

    def every(self, rows: Span, cols: Span, head: Tensor, extent: Extent) -> Tensor:
        """Head by head."""
        return self._stacked(head, extent, lambda m, h: m.every(rows, cols, h, extent), rows, cols)

    def row(self, q: int, head: int, extent: Extent) -> Tensor:
        """Of the head's mask."""
        return self._of(head, extent).row(q, head, extent)

    def row_bound(self, q: int, head: int, extent: Extent) -> int:
        """Of the head's mask."""
        return self._of(head, extent).row_bound(q, head, extent)

    @property
    def exact_some(self) -> bool:
        """Where the masks are."""
        return all(m.exact_some for m in self.masks)

    @property
    def exact_every(self) -> bool:
        """Where the masks are."""
        return all(m.exact_every for m in self.masks)

    def _of(self, head: int, extent: Extent) -> Mask:
        return self.masks[head // (extent.heads // len(self.masks))]

    def _stacked(self, head: Tensor, extent: Extent, ask, rows: Span, cols: Span) -> Tensor:
        shape = 1, len(rows.first), cols.first.shape[-1]
        return torch.cat([ask(self._of(int(h), extent), h[None]).expand(shape) for h in head])
