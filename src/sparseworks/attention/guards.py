"""Guards of heads: the mass and the likeness at which each head errs little enough, then how far its softmax may skip (SpargeAttn)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.budgets import HeadMass
from sparseworks.attention.dense import attend_dense
from sparseworks.attention.heads import Heads
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.run import sparse_attention
from sparseworks.attention.scores.sparge import SelfSimilar
from sparseworks.attention.select import select
from sparseworks.attention.skipping import attend_skipping
from sparseworks.core.errors import BudgetError, RecipeError

Judged = tuple[Float[Tensor, "guards heads"], Float[Tensor, "guards heads"]]
"""Relative error and density of every guard and head."""


@dataclass(frozen=True)
class Guard:
    """Blocks are kept up to this `mass` of the pooled probability; those whose mean cosine is not above `similarity` are always kept."""

    mass: float
    similarity: float


WHOLE = Guard(1.0, 1.0)
"""Everything is kept."""


def guards(
    masses: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98), similarities: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8)
) -> list[Guard]:  # fmt: skip
    """Every pair; the grid is ours, the paper names none."""
    return [Guard(m, s) for m, s in product(masses, similarities)]


def judge(heads: Heads, method: AttentionMethod, grid: Sequence[Guard]) -> Judged:
    """sum |O - O'| / sum |O| over the outputs of a head, and its density, under each guard.

    Raises:
        RecipeError: a method without a guard.
    """
    dense, errors, densities = attend_dense(heads), [], []
    for guard in grid:
        (out, _), kept = sparse_attention(heads.with_(memory={}), with_guards(method, [guard] * heads.heads))
        errors.append(_error(out, dense))
        densities.append(torch.ones(heads.heads) if kept is None else kept.density_by_head(heads).mean(0).cpu())
    return torch.stack(errors), torch.stack(densities)


def choose_guards(judged: Iterable[Judged], grid: Sequence[Guard], bound: float = 0.07) -> list[Guard]:
    """Of every head the guard of least mean density whose error is at most `bound` in all calls; `WHOLE` where none is so good.

    l_1 of Zhang et al. 2025, arXiv 2502.18137; .07 is the default of the authors' code, which takes .06 for CogVideoX.

    Raises:
        BudgetError: nothing was judged.
    """
    parts = list(judged)
    if not parts:
        raise BudgetError("Guards are chosen on at least one call.")
    errors, densities = (torch.stack(part) for part in zip(*parts, strict=True))
    price = densities.mean(0).masked_fill(errors.amax(0) > bound, torch.inf)
    best = price.min(0)
    chosen = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [grid[i] if density < 1 else WHOLE for i, density in chosen]


def with_guards(method: AttentionMethod, plan: Sequence[Guard]) -> AttentionMethod:
    """The method with one guard a head.

    Raises:
        RecipeError: a method without a guard.
    """
    if not isinstance(method.score, SelfSimilar):
        raise RecipeError(
            f"Guards belong to the score `self_similar`; method {method.name!r} scores by {method.score}."
        )
    score = replace(method.score, similarity=tuple(g.similarity for g in plan))
    return method.with_(score=score, budget=HeadMass(tuple(g.mass for g in plan)))


def choose_margins(
    calls: Iterable[Heads], method: AttentionMethod, bound: float = 0.08, margins: Sequence[float] = (0.5, 1, 2, 3, 4, 6, 8, 12, 16)
) -> Float[Tensor, " heads"]:  # fmt: skip
    """Of every head the least margin in nats for `attend_skipping` whose error is at most `bound` in all calls; inf where none is.

    Chosen last, once guards are: the error is that of both (l_2; .08 in the authors' code, .065 for CogVideoX).

    Raises:
        BudgetError: no calls.
    """
    worst: Tensor | None = None
    for heads in calls:
        dense, kept = attend_dense(heads), select(heads.with_(memory={}), method)
        errors = torch.stack([_error(attend_skipping(heads, kept, m)[0][0], dense) for m in margins])
        worst = errors if worst is None else torch.maximum(worst, errors)
    if worst is None:
        raise BudgetError("Margins are chosen on at least one call.")
    return torch.tensor(margins).float()[:, None].masked_fill(worst > bound, torch.inf).amin(0)


def _error(out: Float[Tensor, "batch heads queries d"], dense: Float[Tensor, "batch heads queries d"]) -> Tensor:
    away, size = ((x.float().abs().sum((0, 2, 3))) for x in (out - dense, dense))
    return (away / size.clamp(min=1e-30)).cpu()
