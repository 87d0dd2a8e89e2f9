"""Allocators that look at shapes and order only: uniform+, ERK, ERK+, balanced, pyramidal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from sparseworks.allocate.apportion import fit
from sparseworks.core.allocator import ALLOCATORS, Allocator, Evidence
from sparseworks.core.site import Site


@ALLOCATORS.register("uniform_plus")
@dataclass(frozen=True)
class UniformPlus(Allocator):
    """First site dense, last site at least `last`, the same density for all others (Gale et al., 2019, arXiv 1902.09574).

    "First" and "last" are the order of the sites given, which is that of the model.
    """

    last: float = 0.2

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """c * size within the bounds."""
        del evidence
        sizes = [s.size for s in sites]
        lows = [0] * len(sites)
        lows[-1] = ceil(self.last * sizes[-1])
        lows[0] = sizes[0]
        return _scaled(sites, sizes, total, lows, "uniform_plus (first site dense)")


@ALLOCATORS.register("erk")
@dataclass(frozen=True)
class ERK(Allocator):
    """Erdős–Rényi kernel: density p_l = c * sum(dims) / prod(dims), at most 1, c such that the total holds.

    dims are (out, in), for convolutions (out, in, kernel...). Sites whose density would exceed 1 are dense and leave the
    solve for c.

    Source: Evci et al., 2020, arXiv 1911.11134; Erdős–Rényi from Mocanu et al., 2018, arXiv 1707.04780.
    """

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """c * sum(dims) within [0, size]."""
        del evidence
        return _scaled(sites, [sum(dims(s)) for s in sites], total, [0] * len(sites), "erk")


@ALLOCATORS.register("erk_plus")
@dataclass(frozen=True)
class ERKPlus(Allocator):
    """ERK with the last site (the classifier) dense (Liu et al., 2022, arXiv 2202.02643)."""

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """c * sum(dims) within [0, size]; the last site at its size."""
        del evidence
        lows = [0] * (len(sites) - 1) + [sites[-1].size]
        return _scaled(sites, [sum(dims(s)) for s in sites], total, lows, "erk_plus (last site dense)")


@ALLOCATORS.register("balanced")
@dataclass(frozen=True)
class Balanced(Allocator):
    """The same number of kept entries for every site; small sites become dense (Gadhikar et al., 2023, arXiv 2210.02412)."""

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """min(c, size)."""
        del evidence
        return _scaled(sites, [1] * len(sites), total, [0] * len(sites), "balanced")


@ALLOCATORS.register("pyramidal")
@dataclass(frozen=True)
class Pyramidal(Allocator):
    """Density r^l for site l = 1, 2, ..., r the root of sum_l n_l r^l = total (Gadhikar et al., 2023, arXiv 2210.02412)."""

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """n_l r^l."""
        del evidence
        sizes, depth = np.array([s.size for s in sites], dtype=float), np.arange(1, len(sites) + 1)
        return _named(sites, fit(lambda r: sizes * r**depth, total, [0] * len(sites), [s.size for s in sites]))


def dims(site: Site) -> tuple[int, ...]:
    """(out, in) of a site, for convolutions (out, in, *kernel)."""
    rows, cols = site.shape
    return (rows, cols // prod(site.kernel), *site.kernel) if site.kernel else (rows, cols)


def _scaled(
    sites: Sequence[Site], weights: Sequence[float], total: int, lows: Sequence[int], what: str
) -> dict[str, int]:
    direction = np.asarray(weights, dtype=float)
    return _named(sites, fit(lambda c: c * direction, total, lows, [s.size for s in sites], what=what))


def _named(sites: Sequence[Site], counts: Sequence[int]) -> dict[str, int]:
    return dict(zip((s.name for s in sites), counts, strict=True))
