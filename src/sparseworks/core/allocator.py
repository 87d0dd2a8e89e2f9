"""Allocator: who gets how much of the budget. Counts per site, integers that sum to the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.budget import Budget, Cost, even_split
from sparseworks.core.errors import BudgetError, MissingStatError
from sparseworks.core.registry import Registry
from sparseworks.core.score import Score
from sparseworks.core.site import Site
from sparseworks.core.stats import Stat, Stats

ALLOCATORS: Registry[type[Allocator]] = Registry("allocator", "sparseworks.allocate")


@dataclass(frozen=True)
class Evidence:
    """What an allocator may look at, all of it lazy.

    Attributes:
        weight: site name -> its `(rows, cols)` weight.
        stats: site name -> statistics of the dense model, for the types the allocator (and its score) needs.
        score: the method's score.
        block: site name -> index of the repeated block it lies in (-1 outside).
        error: `(site name, density) -> relative squared output error` after pruning to that density.
        trial: `(counts, tokens, draw) -> KL(dense || pruned)` of the whole model on about so many calibration tokens.
        block_error: `(counts, tokens) -> error of the output` of the one block that holds the sites, on about so many tokens.
    """

    weight: Callable[[str], Float[Tensor, "rows cols"]]
    stats: Mapping[str, Stats] = field(default_factory=dict)
    score: Score | None = None
    block: Mapping[str, int] = field(default_factory=dict)
    error: Callable[[str, float], float] | None = None
    trial: Callable[[Mapping[str, int], int, int], float] | None = None
    block_error: Callable[[Mapping[str, int], int], float] | None = None

    def scores(self, name: str) -> Float[Tensor, "rows cols"]:
        """The method's scores of one site on the dense model."""
        if self.score is None:
            raise MissingStatError(f"Allocation of site {name!r} needs a score, and none was given.")
        return self.score(self.weight(name), self.stats.get(name, Stats(site=name)))


class Allocator:
    """`allocate(sites, budget, cost=, evidence=) -> {site name: kept entries}`; the counts sum to the budget exactly."""

    needs: frozenset[type[Stat]] = frozenset()
    uses_scores: ClassVar[bool] = False
    uses_error: ClassVar[bool] = False
    uses_trials: ClassVar[bool] = False
    uses_block: ClassVar[bool] = False
    """Whether it is asked block by block, each time with that block's share of the budget."""
    registered_name: ClassVar[str]

    def __call__(
        self, sites: Sequence[Site], budget: Budget, *, cost: Cost | None = None, evidence: Evidence
    ) -> dict[str, int]:
        """Kept entries of every site.

        Raises:
            BudgetError: no sites, a budget that cannot be met, or counts that do not add up to it.
        """
        if not sites:
            raise BudgetError("There is nothing to allocate: no sites.")
        total = budget.total({s.name: s.size for s in sites}, cost)
        counts = self.shares(sites, total, evidence)
        wrong = [s for s in sites if not 0 <= counts.get(s.name, -1) <= s.size]
        if wrong:
            site, got = wrong[0], counts.get(wrong[0].name, "nothing")
            raise BudgetError(f"{type(self).__name__} gave site {site.name!r} of {site.size} entries {got}.")
        if sum(counts.values()) != total:
            raise BudgetError(f"{type(self).__name__} gave {sum(counts.values())} entries for a budget of {total}.")
        return counts

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """Counts that sum to `total`; what a subclass writes."""
        raise NotImplementedError


@ALLOCATORS.register("uniform")
@dataclass(frozen=True)
class Uniform(Allocator):
    """The same density everywhere."""

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """total * size / sum of sizes, largest remainders first."""
        del evidence
        return dict(zip((s.name for s in sites), even_split(total, [s.size for s in sites]), strict=True))
