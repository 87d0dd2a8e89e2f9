"""Frames, then blocks: a row of queries picks past frames by one mean key each, and blocks inside them (Light Forcing)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.pooled import pooled_logits
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("frame_then_block")
@dataclass(frozen=True)
class FrameThenBlock(AttentionScore):
    """scale mean(q_I) . mean(k_J) for blocks of the `frames` past frames of largest scale mean(q_I) . mean(k_frame); -inf elsewhere.

    The first frames and the nearest are among these unseen, and the frames of the current chunk, those of the queries, come on top
    (Lv et al. 2026, arXiv 2602.04789; numbers are those of the published settings). `scored` counts the products that it takes.

    Attributes:
        frames: past frames that are looked into.
        sink, near: how many of them are the first and the nearest ones, whatever they score.

    Raises:
        BudgetError: fewer than one frame, or more first and nearest ones than frames.
    """

    frames: int = 6
    sink: int = 1
    near: int = 2
    shared: str | None = None

    def __post_init__(self):
        if self.frames < 1:
            raise BudgetError(f"At least one past frame is looked into, got {self.frames}.")
        if min(self.sink, self.near) < 0 or self.sink + self.near > self.frames:
            raise BudgetError(f"First and nearest frames are among the {self.frames}; got {self.sink} and {self.near}.")

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Logits of pooled queries and keys; without a clip, of all blocks."""
        logits = pooled_logits(heads, unit)
        open_ = self.opened(heads, unit)
        return logits if open_ is None else logits.masked_fill(~open_, -torch.inf)

    def opened(self, heads: Heads, unit: Tile) -> Bool[Tensor, "batch heads rows columns"] | None:
        """Blocks that touch a chosen frame, the current chunk or text; None without a clip."""
        clip = heads.clip
        if clip is None:
            return None
        past = (heads.keys - heads.queries - clip.text) // clip.frame
        frames = Tile(unit.rows, clip.frame)
        video = heads.with_(k=heads.k[:, :, clip.text :], v=heads.v[:, :, clip.text :], causal=False, clip=None)
        ranked = pooled_logits(video, frames)[..., : max(past, 0)]
        ranked[..., : self.sink] = torch.inf
        ranked[..., max(past - self.near, 0) :] = torch.inf
        best = ranked.topk(min(self.frames, ranked.shape[-1]), dim=-1).indices
        chosen = torch.zeros(*ranked.shape[:-1], clip.frames, dtype=torch.bool, device=ranked.device)
        chosen.scatter_(-1, best, True)[..., max(past, 0) :] = True
        within = torch.tensor(
            [[a < clip.text + (f + 1) * clip.frame and b > clip.text + f * clip.frame for f in range(clip.frames)]
             for a, b in heads.columns_of(unit.cols)], device=ranked.device)  # fmt: skip
        text = torch.tensor([a < clip.text for a, _ in heads.columns_of(unit.cols)], device=ranked.device)
        return (chosen.unsqueeze(-2) & within).any(-1) | text

    def scored(self, heads: Heads, unit: Tile) -> int:
        """Products of pooled queries and keys: frames, and the blocks of those chosen."""
        open_, past = self.opened(heads, unit), 0
        if heads.clip is not None:
            past = max(0, (heads.keys - heads.queries - heads.clip.text) // heads.clip.frame)
        rows, columns = heads.grid(unit)
        each = heads.batch * heads.heads * rows
        return each * columns if open_ is None else each * past + int(open_.sum())

    def everything(self) -> FrameThenBlock:
        """With all frames looked into."""
        return replace(self, frames=1 << 30)
