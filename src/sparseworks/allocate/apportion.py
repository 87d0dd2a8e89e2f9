"""From a one-parameter family of real shares to integers that sum to the budget: what all closed-form allocators share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from sparseworks.core.errors import BudgetError

Family = Callable[[float], Float[np.ndarray, " sites"]]
"""`family(level) -> entries of every site`, real numbers that never fall as the level rises."""

_HALVINGS = 200


def fit(
    family: Family,
    total: int,
    lows: Sequence[int],
    highs: Sequence[int],
    *,
    start: float = 0.0,
    what: str = "the allocation",
) -> list[int]:
    """Integers `lows <= k <= highs` that sum to `total`, nearest to `clip(family(level))` at the level where the sum fits.

    Clipping and redistribution are one act: sites at a bound stay there, the others share what is left. With
    `family = c * weights` this is the loop of ERK, in which layers that would exceed density 1 become dense.

    Args:
        family: see `Family`; linear in the level for ERK, a shift for OWL, a power for pyramidal.
        start: the smallest level.
        what: named in the error.

    Raises:
        BudgetError: the bounds leave no room for `total`, or the family cannot reach it.
    """
    low, high = np.asarray(lows, dtype=np.int64), np.asarray(highs, dtype=np.int64)
    if not int(low.sum()) <= total <= int(high.sum()):
        raise BudgetError(
            f"{what} keeps between {int(low.sum())} and {int(high.sum())} entries; the budget of {total} cannot be met. "
            "Change the density, or leave sites out."
        )

    def at(level: float) -> np.ndarray:
        return np.clip(family(level), low, high)

    left, right = start, max(start + 1.0, 1.0)
    for _ in range(_HALVINGS):
        if at(right).sum() >= total:
            break
        right = start + 2 * (right - start)
    else:
        raise BudgetError(f"{what} never reaches the budget of {total} entries, however far it is raised.")
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        left, right = (left, middle) if at(middle).sum() >= total else (middle, right)
    return to_integers(at(right), total, low.tolist(), high.tolist())


def to_integers(exact: Float[np.ndarray, " sites"], total: int, lows: Sequence[int], highs: Sequence[int]) -> list[int]:
    """`exact` rounded to integers within the bounds that sum to `total`: largest remainders, ties to the earlier site."""
    counts = np.clip(np.floor(exact + 1e-9).astype(np.int64), lows, highs)
    order = np.argsort(counts - exact, kind="stable").tolist()
    while missing := total - int(counts.sum()):
        step, bounds = (1, highs) if missing > 0 else (-1, lows)
        able = [i for i in order[::step] if counts[i] != bounds[i]][: abs(missing)]
        if not able:
            raise BudgetError(f"No integers within the bounds sum to {total}.")
        counts[able] += step
    return counts.tolist()
