"""Spatial or temporal: each head of a video model gets the order in which its attention is a band (Sparse VideoGen)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.order import ORDERS, Order
from sparseworks.attention.orders.grid import places, text_last
from sparseworks.core.errors import BudgetError


@ORDERS.register("head_layout")
@dataclass(frozen=True)
class HeadLayout(Order):
    """Frame by frame for heads that attend within frames, place by place for those that attend along time; text last.

    A head is what costs less: the squared error of `rows` sampled queries under a band of `frames` frames in either order
    (Xi et al. 2025, arXiv 2502.01776). Heads that share keys are decided together.

    Attributes:
        rows: sampled queries.
        frames: reach of the band to either side, in tokens of a frame.
        seed: of the sample.
    """

    rows: int = 64
    frames: float = 1.5
    seed: int = 0

    def __post_init__(self):
        if self.rows < 1 or self.frames <= 0:
            raise BudgetError(f"At least one row and a band of more than 0 frames are needed, got {self}.")

    def __call__(
        self, heads: Heads
    ) -> tuple[Int[Tensor, "batch heads queries"], Int[Tensor, "batch kv_heads keys"]] | None:
        """None where there is no clip; which heads are temporal is left in `heads.memory["temporal"]`."""
        if heads.clip is None:
            return None
        temporal = heads.memory["temporal"] = self.temporal(heads)
        by_frame, by_place = _layouts(heads)
        order = torch.where(temporal.unsqueeze(-1), text_last(heads.clip, by_place), text_last(heads.clip, by_frame))
        return heads.shared(order), order

    def temporal(self, heads: Heads) -> Bool[Tensor, "batch kv_heads"]:
        """Whether the band along time errs less.

        Raises:
            BudgetError: the heads carry no clip.
        """
        if heads.clip is None:
            raise BudgetError("Heads are told apart by their frames: give the heads a `clip`.")
        clip, device = heads.clip, heads.q.device
        draw = torch.Generator().manual_seed(self.seed)
        sample = torch.randperm(clip.tokens - clip.text, generator=draw)[: self.rows].to(device)
        scores = heads.with_(q=heads.q[:, :, sample + clip.text]).scores()
        v, reach = heads.shared(heads.v.to(scores.dtype)), self.frames * clip.frame
        dense = scores.softmax(-1) @ v
        errors = []
        for layout in _layouts(heads):
            place = layout.argsort()
            far = (place[sample][:, None] - place).abs() >= reach
            far = torch.cat([far.new_zeros(len(sample), clip.text), far], -1)
            error = (scores.masked_fill(far, -torch.inf).softmax(-1) @ v - dense).square().sum((-2, -1))
            errors.append(heads.grouped(error, "sum"))
        return errors[1] < errors[0]


def _layouts(heads: Heads) -> tuple[Tensor, Tensor]:
    assert heads.clip is not None
    frame, y, x = places(heads.clip).to(heads.q.device)
    place = y * heads.clip.width + x
    return torch.arange(len(frame), device=frame.device), (place * heads.clip.frames + frame).argsort()
