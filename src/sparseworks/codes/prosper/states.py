"""State table: all discrete codes with 2 to g entries among the preselected units; zero and single units stand beside it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError

_MOST_STATES = 100_000


@dataclass(frozen=True)
class StateTable:
    """The codes that a truncated posterior runs over, for units that take 0 or one of V values.

    Attributes:
        values: the values other than 0.
        table: one state a row, over the preselected units.
        counts: how often each value stands in each state.
    """

    values: Float[Tensor, " values"]
    table: Float[Tensor, "states candidates"]
    counts: Float[Tensor, "states values"]

    @classmethod
    def of(cls, values: tuple[float, ...], candidates: int, most: int, like: Tensor) -> StateTable:
        """All states with 2 ... `most` entries among `candidates` units: sum_g C(H', g) V^g rows.

        Raises:
            BudgetError: no value, a value of 0, sizes below 1, or more than 100,000 states.
        """
        if not values or 0 in values or len(set(values)) < len(values) or not 1 <= most <= candidates:
            raise BudgetError(f"States need different values other than 0 and 1 <= {most} <= {candidates} units.")
        size = sum(comb(candidates, g) * len(values) ** g for g in range(2, most + 1))
        if size > _MOST_STATES:
            raise BudgetError(
                f"{size} states are too many to run over: lower the entries ({most}) or the candidates ({candidates})."
            )
        rows = [
            (units, which)
            for g in range(2, most + 1)
            for units in combinations(range(candidates), g)
            for which in product(range(len(values)), repeat=g)
        ]
        table, counts = like.new_zeros(size, candidates), like.new_zeros(size, len(values))
        for row, (units, which) in enumerate(rows):
            table[row, list(units)] = like.new_tensor([values[v] for v in which])
            counts[row] = torch.bincount(torch.tensor(which), minlength=len(values)).to(like)
        return cls(like.new_tensor(values), table, counts)

    @staticmethod
    def odds(share: Float[Tensor, " values"]) -> Float[Tensor, " values"]:
        """log(p_v / (1 - sum p)) of every value."""
        return share.log() - (1 - share.sum()).log()

    def log_prior(self, share: Float[Tensor, " values"], units: int) -> Float[Tensor, " all"]:
        """sum_v n_v log(p_v / (1 - sum p)) of zero, of every value at every unit, and of the table, in this order."""
        odds = self.odds(share)
        return torch.cat([odds.new_zeros(1), odds.repeat(units), self.counts @ odds])

    def used(self, posterior: Float[Tensor, "rows all"]) -> Float[Tensor, " values"]:
        """Expected number of times each value is used, all rows together."""
        singles = posterior[:, 1 : posterior.shape[1] - len(self.table)].sum(0).view(-1, len(self.values)).sum(0)
        return singles + posterior[:, posterior.shape[1] - len(self.table) :].sum(0) @ self.counts


def spread(
    moments: Float[Tensor, "rows candidates"], candidates: Int[Tensor, "rows candidates"], units: int
) -> Float[Tensor, "rows units"]:
    """What was computed for preselected units, at their places among all units."""
    return moments.new_zeros(len(moments), units).scatter_add(1, candidates, moments)


def spread_pairs(
    moments: Float[Tensor, "rows candidates candidates"], candidates: Int[Tensor, "rows candidates"], units: int
) -> Float[Tensor, "units units"]:
    """Sum over rows of second moments of preselected units, at their places."""
    place = candidates.unsqueeze(2) * units + candidates.unsqueeze(1)
    return moments.new_zeros(units * units).index_add(0, place.flatten(), moments.flatten()).view(units, units)
