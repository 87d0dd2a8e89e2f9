"""Skip lists: a tile that added nothing at one denoising step is left out of all later ones (S11; LiteAttention)."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("running_gap")
@dataclass(frozen=True)
class RunningGap(AttentionScore):
    """max over i in I of log2 e (max_{j in J} s_ij - running maximum of row i before J), as of the last call; -inf once left out.

    With a threshold of t bits a tile left out held at most b_k 2^t of any row when it was marked. Keys are taken in order, so the
    running maximum is that of the kept tiles to the left (Shmilovich et al. 2025, arXiv 2511.11062).

    Attributes:
        slack: bits added to the gaps at step 0, falling in a straight line to none at the last step: early steps leave out less.
        anew: every so many steps all tiles are computed, and the list begins anew; 0: never (`run.forget()` does it too).
    """

    slack: float = 0.0
    anew: int = 0
    probability: ClassVar[bool] = False
    shared: str | None = None

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Gaps in bits that the last call left behind; inf at the first call."""
        gaps = heads.memory.get("gaps")
        again = self.anew > 0 and heads.step % self.anew == 0
        if again or gaps is None or gaps.shape[-2:] != heads.grid(unit):
            return heads.q.new_full((heads.batch, heads.heads, *heads.grid(unit)), torch.inf, dtype=torch.float32)
        return gaps + self.slack * (1 - heads.step / max(heads.steps - 1, 1))

    def learn(self, heads: Heads, **seen: Any) -> None:
        """Gaps of the tiles that have just been computed."""
        heads.memory["gaps"] = running_gaps(heads, seen["kept"].unit, seen["kept"].mask)


def running_gaps(
    heads: Heads, unit: Tile, mask: Bool[Tensor, "batch heads rows columns"]
) -> Float[Tensor, "batch heads rows columns"]:
    """The largest gap of a row of every kept tile in bits: inf for the first of a row, -inf for tiles that are not kept."""
    mask = mask.expand(heads.batch, heads.heads, -1, -1)
    columns = heads.columns_of(unit.cols)
    found = []
    for row, (first, last) in enumerate(heads.rows_of(unit.rows)):
        scores = heads.scores(slice(first, last))
        local = torch.stack([scores[..., a:b].amax(-1) for a, b in columns], -1)
        local = local.masked_fill(~mask[:, :, row, None], -torch.inf)
        before = torch.cat([torch.full_like(local[..., :1], -torch.inf), local.cummax(-1).values[..., :-1]], -1)
        gap = torch.where(before.isneginf(), torch.inf, (local - before) / log(2)).amax(-2)
        found.append(gap.masked_fill(~mask[:, :, row], -torch.inf))
    return torch.stack(found, -2)
