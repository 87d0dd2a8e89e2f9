"""How supports moved: mask churn and the share of weights that ever took part."""

from __future__ import annotations

from collections.abc import Mapping

from sparseworks.core.support import Support

Supports = Mapping[str, Support]


def churn(before: Supports, after: Supports) -> int:
    """SAD = sum over sites of ||M - M'||_1: entries in which two sets of supports differ (Zhou et al., 2021, arXiv 2102.04010).

    Raises:
        KeyError: they name different sites.
    """
    return sum(before[name].diff(after[name]).count for name in {*before, *after})


class Explored:
    """Which entries were ever kept: in-time over-parameterisation (Liu et al., 2021, arXiv 2102.02887).

    explored = Explored(sparsifier.supports)
    ... if sparsifier.step(): explored.add(sparsifier.supports)
    """

    def __init__(self, supports: Supports):
        self.ever = dict(supports)

    def add(self, supports: Supports) -> None:
        """Take in the supports as they are now."""
        self.ever = {name: self.ever[name] | support for name, support in supports.items()}

    @property
    def share(self) -> float:
        """R_s: entries ever kept / all entries."""
        return sum(s.count for s in self.ever.values()) / max(sum(s.size for s in self.ever.values()), 1)
