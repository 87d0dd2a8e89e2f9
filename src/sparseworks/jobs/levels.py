"""What every site would cost at every level of sparsity: measured time and calibrated error, the table a search chooses from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparseworks.core.errors import BudgetError, KernelError, PatternError
from sparseworks.core.method import Method
from sparseworks.core.site import Site
from sparseworks.core.stats import Gram, Stats
from sparseworks.core.support import Support
from sparseworks.exec import plan
from sparseworks.stream import gather
from sparseworks.weights.matrix import solve_matrix


@dataclass(frozen=True)
class Level:
    """One way to thin out a site.

    Attributes:
        method: the method at this level's pattern and density; None = stays dense.
        us: measured microseconds of the site at the timed rows, with the fastest kernel (dense included).
        error: relative squared output error on the calibration inputs, in [0, 1].
    """

    method: Method | None
    us: float
    error: float

    @property
    def label(self) -> str:
        """Pattern and density, or "dense"."""
        return "dense" if self.method is None else f"{self.method.pattern} {_density(self.method):.0%}"


def level_table(
    model: nn.Module,
    sites: Sequence[Site],
    method: Method,
    batches: Sequence[Any],
    *,
    rows: int,
    patterns: Sequence[str],
    densities: Sequence[float],
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    tick: Any = lambda: None,
) -> dict[str, list[Level]]:
    """Site name -> its levels, the dense one first. One pass gathers statistics, then every site is pruned at every level.

    Args:
        method: the method whose pattern and density are varied.
        rows: rows of the matrix products to time.
        tick: called after every site (progress).

    Raises:
        CalibrationError: no batches.
    """
    variants = [v for p in patterns for v in _variants(method, p, densities)]
    needs = frozenset({Gram}) | frozenset().union(*(v.needs for v in variants))
    stats = gather(model, sites, needs, batches)
    tables: dict[str, list[Level]] = {}
    dense_us: dict[str, float] = {}
    for site in sites:
        levels, trial = [], {}
        for variant in variants:
            found = _prune_one(site, site.read(model).float(), stats[site.name], variant)
            if found is not None:
                trial[variant] = found
        for variant, (support, error) in trial.items():
            us, dense = _time(model, site, support, rows, dtypes)
            dense_us[site.name] = dense
            levels.append(Level(variant, us, error))
        tables[site.name] = [Level(None, dense_us.get(site.name, 0.0), 0.0), *_useful(levels)]
        tick()
    return tables


def _variants(method: Method, pattern: str, densities: Sequence[float]) -> list[Method]:
    changed = method.with_(pattern=pattern)
    if changed.pattern.fixed_density is not None:
        return [changed]
    return [changed.with_(density=d) for d in densities]


def _prune_one(site: Site, weight: torch.Tensor, stats: Stats, method: Method) -> tuple[Support, float] | None:
    try:
        solved = solve_matrix(weight, stats, method, count=round(_density(method) * site.size))
    except (PatternError, BudgetError):
        return None  # this pattern does not fit this site
    return solved.support, solved.error


def _time(
    model: nn.Module, site: Site, support: Support, rows: int, dtypes: Sequence[torch.dtype]
) -> tuple[float, float]:
    """(fastest, dense) microseconds of the site."""
    try:
        row = plan(model, {site.name: support}, batch=rows, dtypes=tuple(dtypes)).rows[0]
    except KernelError:
        return 0.0, 0.0
    dense = row.dense_us or 0.0
    return (row.us if row.us is not None else dense), dense


def _useful(levels: Sequence[Level]) -> list[Level]:
    """Levels that no other level beats in both time and error, fastest last."""
    kept: list[Level] = []
    for level in sorted(levels, key=lambda v: (v.error, v.us)):
        if not kept or level.us < kept[-1].us:
            kept.append(level)
    return kept


def _density(method: Method) -> float:
    fixed = method.pattern.fixed_density
    return fixed if fixed is not None else float(getattr(method.budget, "value", 0.5))


def total_us(table: Mapping[str, Sequence[Level]], chosen: Mapping[str, int] | None = None) -> float:
    """Sum of the sites' times at the chosen levels (default: dense)."""
    return sum(levels[chosen[name] if chosen else 0].us for name, levels in table.items())
