"""Keep the best of groups that are opened in the order of a bound, with a certificate of what that is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError


@dataclass(frozen=True)
class Certificate:
    """What `select_bounded` opened, and whether the result is proven equal to the exact one.

    Attributes:
        opened: groups whose exact scores were computed, of `groups`.
        threshold: the `keep`-th best score found (-inf while fewer were found).
        exact: no closed group has a bound that reaches the threshold, and no opened group broke its bound.
    """

    opened: int
    groups: int
    threshold: float
    exact: bool


def select_bounded(
    bounds: Float[Tensor, " groups"],
    exact: Callable[[int], tuple[Int[Tensor, " n"], Float[Tensor, " n"]]],
    keep: int,
    *,
    slack: float = 1.0,
) -> tuple[Int[Tensor, " kept"], Float[Tensor, " kept"], Certificate]:
    """The `keep` best items, opening groups in order of an upper bound and stopping when no closed group can matter.

    Group g is opened while `slack * bound_g` can beat the `keep`-th best exact score seen; `slack = 1` is exact
    (MaxScore, gap-safe screening), `slack < 1` trades recall for time (Seismic). Ties go to the lower item id.

    Args:
        bounds: for each group a number never below its best exact score.
        exact: `exact(g)` -> item ids and exact scores of group g.
        keep: number of items to keep.
        slack: in (0, 1].

    Raises:
        BudgetError: `slack` outside (0, 1] or `keep` negative.
        NonFiniteError: NaN in bounds or scores.
    """
    if not 0 < slack <= 1 or keep < 0:
        raise BudgetError(f"select_bounded needs 0 < slack <= 1 and keep >= 0, got slack={slack}, keep={keep}.")
    if bool(torch.isnan(bounds).any()):
        raise NonFiniteError("Bounds hold NaN.")
    ids, values = bounds.new_empty(0, dtype=torch.long), bounds.new_empty(0)
    order = bounds.argsort(descending=True, stable=True).tolist()
    opened, cut, sound = 0, -torch.inf, True
    for g in order:
        bound = float(bounds[g])
        if keep == 0 or (ids.numel() >= keep and min(bound, slack * bound) < cut):
            break
        new_ids, new_values = exact(g)
        if bool(torch.isnan(new_values).any()):
            raise NonFiniteError(f"Exact scores of group {g} hold NaN.")
        sound &= not bool((new_values > bound).any())
        ids, values = _best(torch.cat([ids, new_ids]), torch.cat([values, new_values]), keep)
        opened += 1
        cut = float(values[-1]) if ids.numel() >= keep else -torch.inf
    closed = order[opened:]
    proven = sound and (keep == 0 or not closed or float(bounds[closed[0]]) < cut)
    return ids, values, Certificate(opened, bounds.numel(), cut, exact=proven)


def _best(ids: Tensor, values: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    by_id = ids.argsort(stable=True)
    best = by_id[values[by_id].argsort(descending=True, stable=True)[:keep]]
    return ids[best], values[best]
