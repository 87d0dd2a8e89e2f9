"""What every site would cost at every level of sparsity: measured time and calibrated error, the table a search chooses from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from sparseworks.core.allocator import Uniform
from sparseworks.core.errors import BudgetError, PatternError
from sparseworks.core.method import Method
from sparseworks.core.schedule import Once
from sparseworks.core.site import Site
from sparseworks.core.stats import Gram, Stat, Stats
from sparseworks.core.support import Support
from sparseworks.exec import Row, plan
from sparseworks.exec.draw import AROUND
from sparseworks.exec.fusion import KERNEL as WHOLE
from sparseworks.exec.units import inputs_of
from sparseworks.stream import blocks
from sparseworks.stream.memory import stat_bytes
from sparseworks.stream.modes import evaluating
from sparseworks.weights.decide import Job, gather_evidence
from sparseworks.weights.matrix import Solved, solve_matrix

_STATISTICS = 1 << 30  # bytes of statistics gathered in one pass over the calibration data


@dataclass(frozen=True)
class Level:
    """One way to thin out a site.

    Attributes:
        method: the method at this level's pattern and density; None = stays dense.
        us: measured microseconds of the site at the timed rows, with the fastest kernel (dense included).
        error: relative squared output error on the calibration inputs, in [0, 1].
        whole: the kernel with which a whole layer runs in one call beats dense here, and is not far behind the fastest.
    """

    method: Method | None
    us: float
    error: float
    whole: bool = False

    @property
    def label(self) -> str:
        """Pattern and density, or "dense"."""
        return "dense" if self.method is None else f"{self.method.pattern} {_density(self.method):.0%}"

    def to_data(self) -> list[Any]:
        """Plain data for a journal."""
        return [self.method.to_config() if self.method else None, self.us, self.error, self.whole]

    @classmethod
    def from_data(cls, data: Sequence[Any]) -> Level:
        """Inverse of `to_data`."""
        return cls(Method.from_config(data[0]) if data[0] else None, float(data[1]), float(data[2]), bool(data[3]))


def level_table(
    model: nn.Module,
    sites: Sequence[Site],
    method: Method,
    batches: Sequence[Any],
    *,
    example: Any,
    patterns: Sequence[str],
    densities: Sequence[float],
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    tick: Callable[[int, str], None] = lambda steps, note: None,
) -> dict[str, list[Level]]:
    """Site name -> its levels that nothing beats in both time and error, the dense one first.

    Every site is pruned once at every level, on inputs of the dense model; sites of equal shape share one timing per level.
    Sites that no kernel can run have the dense level only.

    Args:
        method: the method whose pattern and density are varied.
        example: the input to time.
        tick: called with a number of sites and a name when they are done (progress).

    Raises:
        CalibrationError: no batches.
    """
    variants = [v for p in patterns for v in _variants(method, p, densities)]
    kinds = frozenset({Gram}).union(*(v.needs for v in variants))
    clock = _Clock(model, example, tuple(dtypes))
    tables: dict[str, list[Level]] = {}
    for chunk in _chunks(sites, kinds):
        stats = _gather(model, [s for members in chunk for s in members], method, kinds, batches)
        for members in chunk:
            tables |= _module_levels(model, members, stats, variants, clock)
            tick(len(members), members[0].module)
    return {s.name: tables[s.name] for s in sites}


def total_us(table: Mapping[str, Sequence[Level]]) -> float:
    """Sum of the sites' dense times."""
    return sum(levels[0].us for levels in table.values())


def _variants(method: Method, pattern: str, densities: Sequence[float]) -> list[Method]:
    changed = method.with_(pattern=pattern, allocate=Uniform(), schedule=Once())  # the search allocates
    if changed.pattern.fixed_density is not None:
        return [changed]
    return [changed.with_(density=d) for d in densities]


def _chunks(sites: Sequence[Site], kinds: frozenset[type[Stat]]) -> Iterator[list[list[Site]]]:
    """Sites by module (a fused module runs as a whole), as many modules at a time as their statistics leave room for."""
    modules: dict[str, list[Site]] = {}
    for site in sites:
        modules.setdefault(site.module, []).append(site)
    chunk, size = [], 0
    for members in modules.values():
        own = sum(stat_bytes(s, kinds) for s in members)
        if chunk and size + own > _STATISTICS:
            yield chunk
            chunk, size = [], 0
        chunk.append(members)
        size += own
    if chunk:
        yield chunk


def _gather(
    model: nn.Module, sites: list[Site], method: Method, kinds: frozenset[type[Stat]], batches: Sequence[Any]
) -> dict[str, Stats]:
    job = Job(model, [(method, sites)], blocks(model, sites), batches)
    with evaluating(model):
        return gather_evidence(job, {s.name: kinds for s in sites})


def _module_levels(
    model: nn.Module, members: Sequence[Site], stats: Mapping[str, Stats], variants: Sequence[Method], clock: _Clock
) -> dict[str, list[Level]]:
    found: list[tuple[Method, dict[str, Solved], dict[str, Timed]]] = []
    for variant in variants:
        solved = {s.name: _solve(s, s.read(model), stats[s.name], variant) for s in members}
        fitting = {name: x for name, x in solved.items() if x is not None}
        if len(fitting) < len(members):
            continue
        timed = clock.time(members, {name: x.support for name, x in fitting.items()}, variant)
        if timed is None:
            break  # it stays dense whatever its support
        found.append((variant, fitting, timed))
    return {s.name: _levels(s.name, found) for s in members}


def _levels(name: str, found: Sequence[tuple[Method, dict[str, Solved], dict[str, Timed]]]) -> list[Level]:
    """Times relative to the dense layer of their own race, on one common dense time."""
    dense = median([timed[name].dense_us for _, _, timed in found]) if found else 0.0
    levels = [
        Level(v, dense * timed[name].us / timed[name].dense_us, solved[name].error, timed[name].whole)
        for v, solved, timed in found
    ]
    return [Level(None, dense, 0.0), *(level for level in _useful(levels) if level.us < dense)]


def _solve(site: Site, weight: torch.Tensor, stats: Stats, method: Method) -> Solved | None:
    try:
        return solve_matrix(weight.float(), stats, method, count=round(_density(method) * site.size))
    except (PatternError, BudgetError):
        return None  # this pattern does not fit this site


class Timed(NamedTuple):
    """Microseconds of a site with its fastest kernel and dense, and whether it may run in a whole layer (see `Level.whole`)."""

    us: float
    dense_us: float
    whole: bool


def runs_whole(row: Row) -> bool:
    """As the planner decides it for a layer."""
    us = dict([(row.kernel, row.us), *row.alternatives]).get(WHOLE)
    return us is not None and us <= AROUND * (row.us or 0.0) and us < (row.dense_us or 0.0)


@dataclass
class _Clock:
    """Microseconds of a module's sites at one level, measured once for all modules of the same kind, shape and input."""

    model: nn.Module
    example: Any
    dtypes: tuple[torch.dtype, ...]
    known: dict[Any, list[Timed] | None] = field(default_factory=dict)

    def __post_init__(self):
        self.seen = inputs_of(self.model, [self.example])

    def time(self, members: Sequence[Site], supports: Mapping[str, Support], level: Method) -> dict[str, Timed] | None:
        """Site -> times, or None where the module cannot be replaced."""
        module = self.model.get_submodule(members[0].module)
        bias = getattr(module, "bias", None) is not None
        moves = repr(module) if members[0].kernel else ""  # strides and padding of a convolution
        shapes = tuple(s.shape for s in members), str(self.seen.get(members[0].module))
        key = (type(module), bias, moves, shapes, str(level.pattern), _density(level))
        if key not in self.known:
            self.known[key] = self._measure(supports)
        timed = self.known[key]
        return None if timed is None else dict(zip((s.name for s in members), timed, strict=True))

    def _measure(self, supports: Mapping[str, Support]) -> list[Timed] | None:
        rows = plan(self.model, supports, examples=[self.example], dtypes=self.dtypes).rows
        timed = [Timed(row.us, row.dense_us, runs_whole(row)) for row in rows if row.us and row.dense_us]
        return timed if len(timed) == len(rows) else None


def _useful(levels: Sequence[Level]) -> list[Level]:
    """Levels that no other level beats in both time and error, also among those that may run in one call; fastest last."""
    kept = [*_front(levels), *_front([v for v in levels if v.whole])]
    return sorted(dict.fromkeys(kept), key=lambda v: -v.us)


def _front(levels: Sequence[Level]) -> list[Level]:
    kept: list[Level] = []
    for level in sorted(levels, key=lambda v: (v.error, v.us)):
        if not kept or level.us < kept[-1].us:
            kept.append(level)
    return kept


def _density(method: Method) -> float:
    fixed = method.pattern.fixed_density
    return fixed if fixed is not None else float(getattr(method.budget, "value", 0.5))
