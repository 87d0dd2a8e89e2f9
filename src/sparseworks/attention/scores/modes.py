"""Modes of a head: the cheapest of a few static patterns that errs little enough, found once and kept (Sparse-vDiT)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.attention.heads import Heads, products
from sparseworks.attention.kept import Kept
from sparseworks.attention.masks import sparse_vdit_modes
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.select import mask_on_grid
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile

MODES = ("full", "skip", "diagonal", "multi_diagonal", "stripe")


@ATTENTION_SCORES.register("head_modes")
@dataclass(frozen=True)
class HeadModes(AttentionScore):
    """inf on the units of the head's mode, -inf elsewhere; a mode is one of full, skip, diagonal, multi_diagonal, stripe.

    Of every mode the share |O_full - O_mode|^2 / |O_full|^2 over sampled queries and the density are taken; a head gets the
    cheapest mode whose share is at most `tolerance` (Chen et al. 2025, arXiv 2506.03065; that rule is our reading of their
    search). The first call of a layer searches, later ones read `heads.memory["modes"]`.

    Attributes:
        width: reach of a band, in tokens.
        columns: global keys of a stripe: those of the largest sampled attention.
        tolerance: largest error of a mode.
        rows: sampled queries.
        plan: modes found before, by `search_modes`: one for all heads or one each; empty: the first call of a layer searches.
    """

    width: int = 64
    columns: int = 64
    tolerance: float = 0.05
    rows: int = 64
    seed: int = 0
    plan: tuple[str, ...] = ()
    shared: str | None = None

    def __post_init__(self):
        if set(self.plan) - set(MODES):
            raise BudgetError(f"Modes are {', '.join(MODES)}; got {', '.join(self.plan)}.")
        if min(self.width, self.columns, self.rows) < 1 or self.tolerance < 0:
            raise BudgetError(f"Widths, columns and rows are at least 1, a tolerance at least 0; got {self}.")

    def everything(self) -> HeadModes:
        """Every head full."""
        return replace(self, plan=("full",))

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """The modes' units."""
        masks = self.masks(heads, unit)
        mode: Tensor | None = heads.memory.get("modes")
        if mode is None or mode.shape != (heads.batch, heads.heads):
            mode = heads.memory["modes"] = self.search(heads, unit, masks)
        chosen = torch.stack([(mode == i)[..., None, None] & m for i, m in enumerate(masks)]).any(0)
        return torch.where(chosen, torch.inf, -torch.inf)

    def attending(self, heads: Heads, kept: Kept) -> Bool[Tensor, "batch heads queries"] | None:
        """Heads that are skipped give zeros."""
        skipped = heads.memory["modes"] == MODES.index("skip")
        return (~skipped).unsqueeze(-1).expand(-1, -1, heads.queries) if bool(skipped.any()) else None

    def masks(self, heads: Heads, unit: Tile) -> list[Bool[Tensor, "batch heads rows columns"]]:
        """Units of every mode, in the order of `MODES`."""
        frame = heads.clip.frame if heads.clip is not None else heads.keys
        static = sparse_vdit_modes(frame, self.width, ())
        found = [mask_on_grid(static[m], heads, unit).to(heads.q.device) for m in MODES[:-1]]
        held = self._sampled(heads)[0].softmax(-1).mean(-2)
        global_ = torch.zeros_like(held, dtype=torch.bool)
        global_ = global_.scatter(-1, held.topk(min(self.columns, heads.keys), -1).indices, True)
        units = heads.pooled(global_.float().unsqueeze(-1), heads.columns_of(unit.cols), "max").squeeze(-1) > 0
        stripe = units.unsqueeze(-2).expand(-1, -1, heads.grid(unit)[0], -1)
        return [m.expand_as(stripe) & heads.allowed(unit).to(m.device) for m in (*found, stripe)]

    def search(
        self, heads: Heads, unit: Tile, masks: list[Bool[Tensor, "batch heads rows columns"]]
    ) -> Int[Tensor, "batch heads"]:
        """The mode of every head, as its place in `MODES`.

        Raises:
            BudgetError: a plan for another number of heads.
        """
        if not self.plan:
            return self.cheapest(*self.judge(heads, unit, masks))
        if len(self.plan) not in (1, heads.heads):
            raise BudgetError(f"The plan has modes for {len(self.plan)} heads, there are {heads.heads}.")
        plan = torch.tensor([MODES.index(m) for m in self.plan], device=heads.q.device)
        return plan.expand(heads.batch, heads.heads)

    def judge(
        self, heads: Heads, unit: Tile, masks: list[Bool[Tensor, "batch heads rows columns"]]
    ) -> tuple[Float[Tensor, "batch heads modes"], Float[Tensor, "batch heads modes"]]:
        """Error and density of every mode."""
        scores, at = self._sampled(heads)
        v = heads.shared(heads.v.to(scores.dtype))
        dense = scores.softmax(-1) @ v
        errors, costs = [], []
        for mask in masks:
            kept = Kept(mask, unit)
            pairs = kept.tokens(heads, at.cpu())  # type: ignore[arg-type]
            out = scores.masked_fill(~pairs, -torch.inf).softmax(-1).nan_to_num(0.0) @ v
            errors.append((out - dense).square().sum((-2, -1)) / dense.square().sum((-2, -1)).clamp(min=1e-30))
            costs.append(kept.density_by_head(heads))
        return torch.stack(errors, -1), torch.stack(costs, -1)

    def cheapest(
        self, error: Float[Tensor, "*heads modes"], cost: Float[Tensor, "*heads modes"]
    ) -> Int[Tensor, "*heads"]:
        """The mode of least density whose error is tolerated; the whole map always is."""
        fits = error <= self.tolerance
        fits[..., 0] = True
        return cost.masked_fill(~fits, torch.inf).argmin(-1)

    def _sampled(self, heads: Heads) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(self.seed)
        at = torch.randperm(heads.queries, generator=draw)[: self.rows].sort().values.to(heads.q.device)
        scores = products(heads.q[:, :, at].float(), heads.k.float()) * heads.factor
        if heads.causal:
            scores = scores.masked_fill(
                torch.arange(heads.keys, device=at.device) > (at + heads.offset)[:, None], -torch.inf
            )
        return scores, at


def search_modes(score: HeadModes, calls: Iterable[Heads], unit: Tile) -> tuple[str, ...]:
    """One mode a head for a layer, from its calls on a few prompts and steps: errors and densities are averaged over them.

    Give it to a method as `HeadModes(plan=...)`, layer by layer in a recipe.

    Raises:
        BudgetError: no calls.
    """
    judged = [score.judge(heads, unit, score.masks(heads, unit)) for heads in calls]
    if not judged:
        raise BudgetError("Modes are searched on at least one call.")
    error, cost = (torch.cat(parts).mean(0) for parts in zip(*judged, strict=True))
    return tuple(MODES[int(i)] for i in score.cheapest(error, cost))
