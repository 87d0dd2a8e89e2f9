"""A stage of window attention whose blocks may each run on fewer windows than the one before; and a small classifier made of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.activations.spatial.windows import (
    WindowMagnitude,
    nested,
    on_windows,
    partition,
    ranked,
    unpartition,
    window_scores,
)
from sparseworks.core.errors import ShapeError


class WindowBlock(nn.Module):
    """Attention inside each window and a feed-forward layer, both before-normed and residual. (windows, tokens, c) -> the same."""

    def __init__(self, width: int, heads: int = 2, hidden: int | None = None):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden or 2 * width), nn.Linear(hidden or 2 * width, width)

    def forward(self, x: Float[Tensor, "windows tokens c"]) -> Float[Tensor, "windows tokens c"]:
        """One block."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class WindowStage(nn.Module):
    """Blocks over one map, regular and shifted in turn. Windows are scored once for each of the two, where one is first left out.

    Attributes:
        sparsities: share of windows left out in each block, nested; may be changed between calls.
        score: "magnitude", or "random" for comparison.
    """

    def __init__(self, width: int, blocks: int, size: int = 2, heads: int = 2):
        super().__init__()
        self.size = size
        self.blocks = nn.ModuleList(WindowBlock(width, heads) for _ in range(blocks))
        self.sparsities: Sequence[float] = (0.0,) * blocks
        self.score = "magnitude"

    def forward(self, x: Float[Tensor, "batch high wide c"]) -> Float[Tensor, "batch high wide c"]:
        """All blocks.

        Raises:
            ShapeError: not one sparsity a block, or a map that windows do not divide.
        """
        if len(self.sparsities) != len(self.blocks):
            raise ShapeError(f"{len(self.blocks)} blocks take as many sparsities, got {len(self.sparsities)}.")
        high, wide, order = x.shape[1], x.shape[2], {}
        for i, (block, sparsity) in enumerate(zip(self.blocks, nested(self.sparsities), strict=True)):
            shift = self.size // 2 * (i % 2)
            windows = partition(x.roll((-shift, -shift), dims=(1, 2)) if shift else x, self.size)
            if sparsity:
                if shift not in order:
                    order[shift] = self._order(windows.detach())
                kept = order[shift][:, : WindowMagnitude(sparsity, self.size).kept(windows.shape[1])]
                windows = on_windows(block, windows, kept)
            else:
                windows = block(windows.flatten(0, 1)).reshape(windows.shape)
            x = unpartition(windows, high, wide)
            x = x.roll((shift, shift), dims=(1, 2)) if shift else x
        return x

    def _order(self, windows: Tensor) -> Tensor:
        scores = window_scores(windows)
        return ranked(torch.rand(scores.shape).to(scores) if self.score == "random" else scores)


class WindowTransformer(nn.Module):
    """Patches, places inside their window, one `WindowStage`, mean, head: images (batch, channels, high, wide) of any size -> logits.

    Attributes:
        stage: whose `sparsities` say how many windows run.
    """

    def __init__(
        self,
        classes: int,
        *,
        channels: int = 1,
        patch: int = 2,
        width: int = 32,
        blocks: int = 4,
        size: int = 2,
        heads: int = 2,
    ):
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.place = nn.Parameter(0.02 * torch.randn(size, size, width))
        self.stage = WindowStage(width, blocks, size, heads)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Float[Tensor, "batch channels high wide"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        x = self.embed(images).permute(0, 2, 3, 1)
        x = x + self.place.repeat(x.shape[1] // self.place.shape[0], x.shape[2] // self.place.shape[1], 1)
        return self.head(self.norm(self.stage(x)).mean(dim=(1, 2)))
