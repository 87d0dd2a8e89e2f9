"""Shares that were worked out elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparseworks.allocate.apportion import fit
from sparseworks.core.allocator import ALLOCATORS, Allocator, Evidence
from sparseworks.core.errors import BudgetError
from sparseworks.core.site import Site


@ALLOCATORS.register("proportional")
@dataclass(frozen=True)
class Proportional(Allocator):
    """c * share of the site, at most what it holds, c such that the total holds: a total equal to the sum of the shares gives them.

    Attributes:
        named: (site name, share) pairs; a site that is not named has its size as its share.
    """

    named: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        wrong = next((name for name, share in self.named if not share >= 0), None)
        if wrong is not None:
            raise BudgetError(f"The share of site {wrong!r} is not a number >= 0.")

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """c * share within [0, size]."""
        del evidence
        known, sizes = dict(self.named), [s.size for s in sites]
        wanted = np.array([known.get(s.name, s.size) for s in sites], dtype=float)
        found = fit(lambda c: c * wanted, total, [0] * len(sites), sizes, what="proportional")
        return dict(zip((s.name for s in sites), found, strict=True))
