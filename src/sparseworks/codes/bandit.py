"""Misspecified sparse linear bandits: an almost best action by elimination of hypotheses, without exp(features) queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import ceil, comb

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError

_MOST = 5_000_000


@dataclass(frozen=True)
class Elimination:
    """What was found.

    Attributes:
        action: the accepted action's row.
        reward: what it gave.
        queries: how many actions were asked.
        support: features of the accepted hypothesis.
    """

    action: int
    reward: float
    queries: int
    support: tuple[int, ...]


def sparse_bandit(
    features: Float[Tensor, "actions d"],
    reward: Callable[[int], float],
    entries: int,
    error: float,
    *,
    norm: float = 1.0,
    resolution: float | None = None,
) -> Elimination:
    """An action whose reward is within O(error) of the best, where reward(a) = theta . x_a +- error and theta has at most `entries` entries.

    Hypotheses are all supports of `entries` features times a grid of coefficients in [-norm, norm]. The one that promises most has its best action asked;
    it is accepted if the reward is within 2 error + resolution * entries / 2 of its promise. Otherwise every hypothesis that errs by more on
    any action asked so far is gone. The true one always stays, so what is accepted promises no less than the optimum.

    Args:
        features: one action a row, magnitudes at most 1.
        reward: asks an action; each is asked once.
        error: what a reward may differ from the linear model.
        resolution: step of the grid; error by default.

    Raises:
        ShapeError: features are no matrix.
        NonFiniteError: NaN or infinity.
        BudgetError: entries outside 1 ... d, an error or norm that is not positive, more than five million hypotheses, or no hypothesis left:
            rewards then break the assumption.

    Source: Dong and Yang, 2023 (arXiv 2303.16998), as we read its upper bound.
    """
    if features.dim() != 2 or not features.numel():
        raise ShapeError(f"Features are a matrix with an action a row, got {tuple(features.shape)}.")
    if not bool(torch.isfinite(features).all()):
        raise NonFiniteError("Features hold NaN or infinity.")
    if not 1 <= entries <= features.shape[1] or error <= 0 or norm <= 0:
        raise BudgetError(
            f"1 <= entries ({entries}) <= {features.shape[1]}, and error and norm are positive ({error}, {norm})."
        )
    step = error if resolution is None else resolution
    side = 2 * ceil(norm / step) + 1
    if comb(features.shape[1], entries) * side**entries > _MOST:
        raise BudgetError(
            f"{comb(features.shape[1], entries) * side**entries} hypotheses are too many: a coarser resolution or fewer entries."
        )
    grid = torch.linspace(-1, 1, side, dtype=torch.float64) * step * (side // 2)
    levels = torch.cartesian_prod(*[grid] * entries).view(-1, entries)
    supports = torch.tensor(list(combinations(range(features.shape[1]), entries)))
    return _eliminate(features.double(), reward, supports, levels, 2 * error + step * entries / 2)


def _eliminate(
    x: Tensor, reward: Callable[[int], float], supports: Tensor, levels: Tensor, slack: float
) -> Elimination:
    """Best action and promise of each hypothesis are found once; then the most promising one alive is tried."""
    promise, action = (torch.stack(v) for v in zip(*((x[:, s] @ levels.mT).max(0) for s in supports), strict=True))
    alive = torch.ones_like(promise, dtype=torch.bool)
    asked: set[int] = set()
    while bool(alive.any()):
        best = int(promise.masked_fill(~alive, -torch.inf).argmax())
        place, level = divmod(best, len(levels))
        chosen = int(action.flatten()[best])
        seen = float(reward(chosen))
        asked.add(chosen)
        if abs(seen - float(promise.flatten()[best])) <= slack:
            return Elimination(chosen, seen, len(asked), tuple(supports[place].tolist()))
        predicted = x[chosen][supports] @ levels.mT
        alive &= (predicted - seen).abs() <= slack
        alive[place, level] = False
    raise BudgetError("No hypothesis is left: rewards are further from a sparse linear model than the error allows.")
