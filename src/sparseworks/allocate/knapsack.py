"""Sensitivity-driven allocation: the densities that minimise the summed error under the exact budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from sparseworks.allocate.apportion import fit
from sparseworks.core.allocator import ALLOCATORS, Allocator, Evidence
from sparseworks.core.errors import BudgetError, MissingStatError
from sparseworks.core.site import Site


@ALLOCATORS.register("dp")
@dataclass(frozen=True)
class SensitivityDP(Allocator):
    """argmin over densities d_l of the grid of sum_l error_l(d_l) subject to sum_l round(d_l n_l) <= total.

    error_l is the relative squared output error of site l alone after pruning it to density d (the method's own score and
    repair). What the grid leaves of the budget, less than one of its steps, goes to all sites in proportion to what they
    lack. Exact while fewer than `states` spent counts differ; above that the cheapest of each of `states` bins is kept.

    Source: dynamic programming over layer-wise errors as in SPDQ, Frantar and Alistarh, 2022, arXiv 2208.11580.
    """

    densities: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    states: int = 20_000
    uses_error: ClassVar[bool] = True

    def __post_init__(self):
        if not self.densities or any(not 0 <= d <= 1 for d in self.densities):
            raise BudgetError(f"dp needs a grid of densities in [0, 1], got {self.densities}.")

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """The cheapest choice of the grid, then the rest.

        Raises:
            MissingStatError: no error curves.
            BudgetError: even the lowest densities of the grid exceed the budget.
        """
        if evidence.error is None:
            raise MissingStatError("The dp allocator needs error curves of every site: give calibration data.")
        costs = [np.array([round(d * s.size) for d in self.densities]) for s in sites]
        errors = [
            np.array([0.0 if d == 1.0 else evidence.error(s.name, d) for d in self.densities], dtype=float)
            for s in sites
        ]
        chosen = cheapest(costs, errors, total, states=self.states)
        counts = np.array([c[i] for c, i in zip(costs, chosen, strict=True)])
        lack = np.array([s.size for s in sites]) - counts
        full = [s.size for s in sites]
        rest = fit(lambda c: counts + c * lack, total, counts.tolist(), full, what="dp")
        return dict(zip((s.name for s in sites), rest, strict=True))


def cheapest(
    costs: Sequence[Int[np.ndarray, " levels"]],
    errors: Sequence[Float[np.ndarray, " levels"]],
    total: int,
    *,
    states: int = 20_000,
) -> list[int]:
    """One level per site that minimises the sum of errors with a sum of costs of at most `total`.

    Walks over the sites with the Pareto front of (spent, error); integers in, so the result is exact as long as the front
    stays within `states` points.

    Raises:
        BudgetError: no choice fits.
    """
    room = np.array([int(c.min()) for c in costs])
    if total < room.sum():
        raise BudgetError(
            f"Even the lowest densities of the grid keep {int(room.sum())} entries, more than the budget of {total}; "
            "add lower densities to the grid or raise the budget."
        )
    spent, loss, trail = np.zeros(1, dtype=np.int64), np.zeros(1), []
    for site, (cost, error) in enumerate(zip(costs, errors, strict=True)):
        new_spent = (spent[:, None] + cost[None, :]).reshape(-1)
        new_loss = (loss[:, None] + error[None, :]).reshape(-1)
        fits = np.flatnonzero(new_spent <= total - room[site + 1 :].sum())
        kept = fits[_front(new_spent[fits], new_loss[fits], states)]
        trail.append(np.stack(np.divmod(kept, len(cost))))
        spent, loss = new_spent[kept], new_loss[kept]
    return _walk_back(trail, int(np.argmin(loss)))


def _front(spent: Int[np.ndarray, " n"], loss: Float[np.ndarray, " n"], states: int) -> Int[np.ndarray, " kept"]:
    """Points that no other beats in both; of each bin of spending the best where there are too many."""
    order = np.lexsort((loss, spent))
    best = np.minimum.accumulate(loss[order])
    front = order[np.concatenate([[True], loss[order][1:] < best[:-1]])]
    if len(front) <= states:
        return front
    edges = spent[front[0]] + (spent[front[-1]] - spent[front[0]]) * np.arange(1, states + 1) // states
    return front[np.unique(np.searchsorted(spent[front], edges, side="right") - 1)]


def _walk_back(trail: Sequence[Int[np.ndarray, "2 n"]], at: int) -> list[int]:
    levels = []
    for parent, level in reversed(trail):
        levels.append(int(level[at]))
        at = int(parent[at])
    return levels[::-1]
