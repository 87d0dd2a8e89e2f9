"""Pyramid: what is not kept is attended to at a coarser resolution, the coarser the less it matters, before it is skipped (PSA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept, Output
from sparseworks.attention.rest import RESTS, Rest
from sparseworks.attention.rests.summaries import attend_summaries, left_out, sizes, summary_pairs
from sparseworks.core.errors import BudgetError
from sparseworks.exec.attention import merge


@RESTS.register("pyramid")
@dataclass(frozen=True)
class Pyramid(Rest):
    """Units that are not kept have keys and values averaged by 2, 4, 8, ... tokens, with log(tokens) added to the logit.

    Units of a row are ranked by score; those up to `upto[i]` (of the mass, or of their number with `by="share"`) take level
    `levels[i]`, the rest is skipped (Li et al. 2025, arXiv 2512.04025; the bands are those of their code, after a kept mass of .4).

    Attributes:
        levels: tokens averaged into one; they divide the keys of a unit.
        upto: cumulative mass or share at which each level ends.
        by: "mass" of the scores, or "share" of the units.
        counted: whether log(tokens) is added (False shows what that is worth).
        alike: for each level the mean cosine, of the first and the last key of what it averages, above which a unit may take it; where
            none is, its keys are read one by one (theirs for 2, 4, 8: .7, .65, .6). Empty: not asked.
    """

    levels: tuple[int, ...] = (2, 4, 8)
    upto: tuple[float, ...] = (0.5, 0.6, 0.8)
    by: str = "mass"
    counted: bool = True
    alike: tuple[float, ...] = ()
    uses_scores: ClassVar[bool] = True

    def __post_init__(self):
        if len(self.levels) != len(self.upto) or min(self.levels, default=0) < 1 or self.by not in ("mass", "share"):
            raise BudgetError(f'A pyramid has levels, as many ends, and bands by "mass" or "share"; got {self}.')
        if self.alike and len(self.alike) != len(self.levels):
            raise BudgetError(f"There is one cosine for each level, or none at all; got {self}.")

    def __call__(self, heads: Heads, kept: Kept, found: Output) -> Output:
        """Merged with every level."""
        wide = torch.promote_types(heads.q.dtype, torch.float32)
        level, size = self.level(heads, kept), kept.unit.cols or heads.keys
        parts = [found]
        for step in sorted({1, *self.levels}):
            if size % step:
                raise BudgetError(f"Level {step} of a pyramid does not divide the {size} keys of a unit.")
            at = (level == step) & ~kept.mask
            if not at.any():
                continue
            cuts = heads.columns_of(step)
            k, v = (heads.pooled(t.to(wide), cuts) for t in (heads.k, heads.v))
            mask = at.repeat_interleave(size // step, -1)[..., : len(cuts)]
            parts.append(attend_summaries(heads, kept.unit, mask, k, v, sizes(cuts, k).log() * self.counted))
        return merge(parts)

    def level(self, heads: Heads, kept: Kept) -> Int[Tensor, "batch heads rows columns"]:
        """Tokens averaged into one in each unit: 1 where kept, 0 where skipped."""
        open_ = left_out(heads, kept)
        scores: Tensor = heads.memory["scores"].expand_as(open_)
        allowed = heads.allowed(kept.unit).to(scores.device).expand_as(scores)
        first = scores.masked_fill(kept.mask, torch.inf).masked_fill(~allowed, -torch.inf)
        order = first.argsort(dim=-1, descending=True, stable=True)
        weight = allowed.float() if self.by == "share" else scores.clamp(min=0).nan_to_num(posinf=0.0) * allowed
        ranked = weight.gather(-1, order)
        upto = (ranked.cumsum(-1) / ranked.sum(-1, keepdim=True).clamp(min=1e-30)).gather(-1, order.argsort(-1))
        level = torch.zeros_like(order)
        for step, end in sorted(zip(self.levels, self.upto, strict=True), key=lambda x: -x[1]):
            level = torch.where(upto <= end + 1e-6, step, level)
        if self.alike:
            level = torch.minimum(level, heads.shared(self.coarsest(heads, kept.unit.cols or heads.keys)).unsqueeze(-2))
        return torch.where(kept.mask, 1, level * open_)

    def coarsest(self, heads: Heads, size: int) -> Int[Tensor, "batch kv_heads columns"]:
        """The largest level that the keys of each unit of `size` are alike enough for, else 1."""
        columns = len(heads.columns_of(size))
        found = torch.ones(heads.batch, heads.kv_heads, columns, dtype=torch.long, device=heads.k.device)
        for step, least in sorted(zip(self.levels, self.alike, strict=True)):
            ends = heads.k[:, :, step - 1 :: step]
            likeness = F.cosine_similarity(heads.k[:, :, ::step][:, :, : ends.shape[2]], ends, dim=-1)
            unit = torch.arange(ends.shape[2], device=ends.device) * step // size
            count = torch.bincount(unit, minlength=columns).clamp(min=1)
            mean = likeness.new_zeros(found.shape).index_add(2, unit, likeness) / count
            found = torch.where(mean > least, step, found)
        return found

    def cost(self, heads: Heads, kept: Kept) -> Float[Tensor, "batch heads"]:
        """Of each unit at a level as many pairs as the level has means of its keys, for every query."""
        level = self.level(heads, kept).masked_fill(kept.mask, 0).double()
        wide = sizes(heads.columns_of(kept.unit.cols), level)
        return summary_pairs(heads, kept.unit, torch.where(level > 0, (wide / level.clamp(min=1)).ceil(), 0.0))
