"""What every head of a model looks at: how much of its attention a method keeps, at which density, and what its map is like."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseworks.attention.heads import Heads
from sparseworks.attention.hf import attention
from sparseworks.attention.kept import Kept
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.scores.exact import block_mass
from sparseworks.core.errors import CalibrationError, RecipeError
from sparseworks.core.pattern import WHOLE, Tile
from sparseworks.core.select import top

CELLS = 48
"""Cells along a map that is drawn."""


@dataclass(frozen=True)
class HeadFacts:
    """One head of one layer.

    Attributes:
        density: computed pairs over allowed pairs, what a rest spends included.
        recall: attention mass on kept pairs, the mean over queries.
        best: the most that as many units could hold, chosen by their true mass.
        pattern: which static pattern of the same size holds most, and how much.
    """

    layer: int
    head: int
    density: float
    recall: float
    best: float
    pattern: str
    pattern_recall: float


@dataclass(frozen=True)
class Explanation:
    """Facts of all heads, and their maps for drawing.

    Attributes:
        maps: layer -> (heads, CELLS or fewer, CELLS or fewer) mean mass of each cell over its row.
        kept: the same cells, share that was computed.
    """

    method: str
    tokens: int
    heads: list[HeadFacts]
    maps: dict[int, Float[Tensor, "heads cells cells"]] = field(repr=False)
    kept: dict[int, Float[Tensor, "heads cells cells"]] = field(repr=False)

    def to_data(self) -> dict[str, Any]:
        """Plain data, without the maps."""
        return {"method": self.method, "tokens": self.tokens, "heads": [asdict(h) for h in self.heads]}


@torch.no_grad()
def explain(model: nn.Module, ids: Int[Tensor, "1 tokens"], method: AttentionMethod | str) -> Explanation:
    """One forward pass of the text with `method` in force; every layer sees what the layers before it made sparse.

    Raises:
        CalibrationError: no tokens, or several texts.
        RecipeError: a method that leaves reading dense, or that keeps clusters.
        ModelError: a model without layers of attention, see `sw.attention`.
    """
    if ids.dim() != 2 or len(ids) != 1 or ids.shape[1] < 2:
        raise CalibrationError(
            f"One text of at least two tokens is explained, as ids (1, tokens); got {tuple(ids.shape)}."
        )
    facts: list[HeadFacts] = []
    maps: dict[int, Tensor] = {}
    shown: dict[int, Tensor] = {}
    cell = max(1, -(-ids.shape[1] // CELLS))

    def look(heads: Heads, kept: Kept | None) -> None:
        everything = kept or Kept(torch.ones(1, 1, *heads.grid(Tile(cell, cell)), dtype=torch.bool), Tile(cell, cell))
        facts.extend(_facts(heads, everything))
        maps[heads.layer] = block_mass(heads, Tile(cell, cell))[0]
        shown[heads.layer] = _share(heads, everything, cell)[0]

    method = AttentionMethod.of(method)
    if "prefill" not in method.phases:
        raise RecipeError(f"Method {method.name!r} acts while decoding only; a text is explained as it is read.")
    if method.order is not None and method.pattern.unit == WHOLE:
        raise RecipeError(
            f"Method {method.name!r} keeps clusters, which are no places of a map; give it `pattern=blocks(64)`."
        )
    with attention(model, method) as run:
        run.watch = look
        model(ids)
    return Explanation(method.name, ids.shape[1], facts, maps, shown)


def _facts(heads: Heads, kept: Kept) -> list[HeadFacts]:
    unit = kept.unit
    mass = block_mass(heads, unit)[0]
    rows = torch.tensor([b - a for a, b in heads.rows_of(unit.rows)], dtype=mass.dtype)
    weighted = mass * (rows / rows.sum())[:, None]
    mask = kept.mask.expand(1, heads.heads, -1, -1)[0]
    density = kept.density_by_head(heads)[0]
    allowed = heads.allowed(unit)
    found = []
    for h in range(heads.heads):
        count = int(mask[h].sum())
        held = {
            name: _held(weighted[h], score, allowed, count) for name, score in _patterns(weighted[h], allowed).items()
        }
        best = _held(weighted[h], weighted[h], allowed, count)
        name = max(held, key=lambda n: held[n])
        recall = float((weighted[h] * mask[h]).sum())
        found.append(HeadFacts(heads.layer, h, float(density[h]), recall, best, name, held[name]))
    return found


def _patterns(mass: Tensor, allowed: Tensor) -> dict[str, Tensor]:
    """Static patterns as scores of units: which to keep first."""
    rows, cols = mass.shape
    at, to = torch.arange(rows)[:, None] * cols / rows, torch.arange(cols)[None].float()
    near = -(at - to).abs()
    place = (at - to).round().long() - int((at - to).round().min())
    along = torch.zeros(int(place.max()) + 1)
    sums, counts = (
        along.index_add(0, place.flatten(), mass.flatten().float()),
        along.index_add(0, place.flatten(), allowed.flatten().float()),
    )
    return {
        "local": near.expand_as(mass),
        "sink + local": torch.where(to == 0, torch.inf, near),
        "columns": (mass.sum(0) / allowed.sum(0).clamp(min=1)).expand_as(mass),
        "diagonals": (sums / counts.clamp(min=1))[place],
    }  # fmt: skip


def _held(mass: Tensor, score: Tensor, allowed: Tensor, count: int) -> float:
    """Mass of the `count` allowed units of the highest score."""
    ranked = score.float().masked_fill(~allowed, -torch.inf).flatten()[None]
    return float((mass.flatten() * top(ranked, count)[0] * allowed.flatten()).sum())


def _share(heads: Heads, kept: Kept, cell: int) -> Tensor:
    """Computed share of the pairs of each cell."""
    found = []
    for first in range(0, heads.queries, cell):
        pairs = kept.tokens(heads, slice(first, min(first + cell, heads.queries)))
        pairs = pairs.expand(1, heads.heads, -1, -1).float().mean(2)
        padded = torch.nn.functional.pad(pairs, (0, -heads.keys % cell))
        found.append(padded.unflatten(-1, (-1, cell)).mean(-1))
    return torch.stack(found, -2)
