"""Allocators that look at scores of the dense model: global threshold, OWL, DLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.allocate.apportion import fit
from sparseworks.core.allocator import ALLOCATORS, Allocator, Evidence
from sparseworks.core.score import Score
from sparseworks.core.select import select_across
from sparseworks.core.site import Site
from sparseworks.core.stats import InputMoments, Stat, Stats
from sparseworks.scores import InputNorm, Magnitude

_WANDA = Magnitude() * InputNorm()


@ALLOCATORS.register("global")
@dataclass(frozen=True)
class Global(Allocator):
    """One threshold for the whole model: each site keeps what it has among the `total` best scores of all sites.

    Scores of different sites are compared as they are; give a score `.normalised()` where their scales differ.

    Attributes:
        score: whose layer densities are taken where it is not the method's own: `Random()` with `Global(SNIP())` is a random
            support with SNIP's densities (Liu et al., 2022, arXiv 2202.02643).
    """

    score: Score | None = None

    @property
    def uses_scores(self) -> bool:  # type: ignore[override]
        """Whether the method's own score decides."""
        return self.score is None

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """What the other score needs."""
        return self.score.needs if self.score else frozenset()

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """Counts of `select_across`."""
        evidence = replace(evidence, score=self.score) if self.score else evidence
        masks = select_across([evidence.scores(s.name) for s in sites], total)
        return {s.name: int(m.sum()) for s, m in zip(sites, masks, strict=True)}


@ALLOCATORS.register("owl")
@dataclass(frozen=True)
class OWL(Allocator):
    """Blocks with more outliers keep more: D_b = 100 * share of Wanda scores above `m` times their mean in block b.

    keep_b = (D_b - min D) / (max D - min D) * 2 lam, shifted so that the budget holds; all sites of a block share it.
    Sites outside the repeated blocks keep the budget's own density.

    Source: Yin et al., 2023, arXiv 2310.05175 (m = 5, lam = 0.08 for LLaMA). Departure: the shift weighs blocks by their
    size and clips at [0, 1], so that the total is exact.
    """

    m: float = 5.0
    lam: float = 0.08
    needs: ClassVar[frozenset[type[Stat]]] = frozenset({InputMoments})

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """size * (keep_block + shift) within [0, size]."""

        def outliers(scores: Tensor) -> float:
            return 100.0 * float((scores > self.m * scores.mean()).double().mean())

        return _spread_blocks(sites, total, evidence, lambda d: d, outliers, self.lam)


@ALLOCATORS.register("dlp")
@dataclass(frozen=True)
class DLP(Allocator):
    """Blocks whose typical Wanda score is low are important: u_b = median of the scores, I_b = 1 - u_b / sum(u).

    keep_b = (I_b - min I) / (max I - min I) * 2 alpha, shifted so that the budget holds, as in `OWL`.

    Source: Chen et al., 2025, arXiv 2505.23807 (alpha = 0.15). Departure: as in `OWL`.
    """

    alpha: float = 0.15
    needs: ClassVar[frozenset[type[Stat]]] = frozenset({InputMoments})

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """size * (keep_block + shift) within [0, size]."""

        def importance(u: np.ndarray) -> np.ndarray:
            return 1.0 - u / max(float(u.sum()), np.finfo(float).tiny)

        return _spread_blocks(sites, total, evidence, importance, lambda s: float(s.median()), self.alpha)


def _spread_blocks(
    sites: Sequence[Site],
    total: int,
    evidence: Evidence,
    importance: Callable[[Float[np.ndarray, " blocks"]], Float[np.ndarray, " blocks"]],
    statistic: Callable[[Float[Tensor, " entries"]], float],
    half: float,
) -> dict[str, int]:
    """statistic of each block -> importance -> affine map onto [-half, half] around the mean density -> exact counts."""
    members: dict[int, list[Site]] = {}
    for s in sites:
        members.setdefault(evidence.block.get(s.name, -1), []).append(s)
    inside = [b for b in members if b >= 0]
    measured = importance(np.array([statistic(_wanda_scores(members[b], evidence)) for b in inside], dtype=float))
    keep = dict(zip(inside, affine(measured, 2 * half), strict=True))
    sizes = np.array([s.size for s in sites], dtype=float)
    wanted = np.array([keep.get(evidence.block.get(s.name, -1), np.nan) for s in sites])
    wanted = np.where(np.isnan(wanted), _mean(wanted, sizes), wanted)
    counts = fit(
        lambda shift: sizes * (wanted + shift), total, [0] * len(sites), sizes.astype(int).tolist(), start=-2.0
    )
    return dict(zip((s.name for s in sites), counts, strict=True))


def affine(importance: Float[np.ndarray, " blocks"], width: float) -> Float[np.ndarray, " blocks"]:
    """(I - min I) / (max I - min I) * width; all 0 where no block differs."""
    if importance.size == 0 or np.ptp(importance) == 0:
        return np.zeros_like(importance)
    return (importance - importance.min()) / np.ptp(importance) * width


def _mean(wanted: Float[np.ndarray, " sites"], sizes: Float[np.ndarray, " sites"]) -> float:
    """Mean over the sites inside blocks, weighted by size: where the others stand before the shift."""
    known = ~np.isnan(wanted)
    return float(np.average(wanted[known], weights=sizes[known])) if known.any() else 0.0


def _wanda_scores(sites: Sequence[Site], evidence: Evidence) -> Float[Tensor, " entries"]:
    """|W| * ||X|| of all entries of the sites, one after another."""
    stats: Mapping[str, Stats] = evidence.stats
    parts = [_WANDA(evidence.weight(s.name), stats.get(s.name, Stats(site=s.name))) for s in sites]
    return torch.cat([p.reshape(-1) for p in parts])
