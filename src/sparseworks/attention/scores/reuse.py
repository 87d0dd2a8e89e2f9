"""Layer re-use: a few layers attend to everything and say what mattered, the layers after them attend to that (HyLRA)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.scores.exact import block_mass
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.pattern import Tile


@ATTENTION_SCORES.register("layer_reuse")
@dataclass(frozen=True)
class LayerReuse(AttentionScore):
    """The attention mass that the anchor of this layer gave each unit in the same step, summed over a group of heads.

    Anchors are dense. A layer whose anchor has not spoken takes its own exact mass. (HyLRA, 2026, arXiv 2602.00777.)

    Attributes:
        plan: of every layer its anchor, anchors their own (see `reuse_plan`); None: every `span`-th layer is one.
    """

    plan: tuple[int, ...] | None = None
    span: int = 3
    shared: str | None = "sum"

    def anchor(self, layer: int) -> int:
        """The anchor of a layer."""
        if self.plan is None:
            return layer - layer % self.span
        return self.plan[layer] if layer < len(self.plan) else layer

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Mass at the anchor."""
        anchor = self.anchor(heads.layer)
        if anchor != heads.layer:
            told = heads.common.get(("mass", anchor))
            if told is not None and tuple(told.shape) == (heads.batch, heads.heads, *heads.grid(unit)):
                return told
        found = block_mass(heads, unit)
        if anchor == heads.layer:
            heads.common["mass", anchor] = found
        return found

    def dense(self, heads: Heads) -> Bool[Tensor, "batch heads"] | None:
        """Anchors are computed whole."""
        if self.anchor(heads.layer) != heads.layer:
            return None
        return torch.ones(heads.batch, heads.heads, dtype=torch.bool, device=heads.q.device)


def layer_similarity(kept: Sequence[Bool[Tensor, "*units"]]) -> Float[Tensor, "layers layers"]:
    """|kept_a and kept_b| / |kept_b| of the units that each layer would keep: entry (a, b) says how well a stands for b.

    Raises:
        ShapeError: layers of different shapes.
    """
    if len({tuple(m.shape) for m in kept}) > 1:
        raise ShapeError("Layers that are to stand for each other must keep of the same units.")
    flat = torch.stack([m.flatten().float() for m in kept])
    return (flat @ flat.T) / flat.sum(1).clamp(min=1)


def reuse_plan(
    similarity: Float[Tensor, "layers layers"], anchors: int, sensitive: Iterable[int] = ()
) -> tuple[int, ...]:  # fmt: skip
    """The anchor of every layer: at most `anchors` layers are their own, the others take the last anchor before them.

    Maximises sum over layers of similarity[anchor(l), l] by a dynamic programme over (layer, its anchor, anchors so far):
    best(l, a, n) = max(best(l - 1, a, n) + s[a, l], max_b best(l - 1, b, n - 1) + s[l, l] with a = l). Layer 0 and the
    `sensitive` ones are anchors in any case.

    Raises:
        BudgetError: fewer anchors than must be.
    """
    layers, forced = len(similarity), {0, *sensitive}
    if anchors < len(forced):
        raise BudgetError(f"{len(forced)} layers have to be anchors, only {anchors} may be.")
    s = similarity.double().tolist()
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 1): (s[0][0], (0,))}
    for layer in range(1, layers):
        fresh: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (anchor, used), (value, plan) in best.items():
            ways = [(layer, used + 1)] if layer in forced else [(anchor, used), (layer, used + 1)]
            for at, count in ways:
                found = value + s[at][layer]
                if count <= anchors and found > fresh.get((at, count), (float("-inf"), ()))[0]:
                    fresh[at, count] = found, (*plan, at)
        best = fresh
    return max(best.values())[1]
