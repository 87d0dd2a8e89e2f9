"""The composition matrix: every score with every pattern, allocator, repair, solver and format on a two-layer toy model.

The full product is walked, but no stage is computed twice: scores once, counts once per allocator, a support once per
(pattern, count), values once per support and repair, and a packed weight once per values and format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

import sparseworks.allocate
import sparseworks.repair
import sparseworks.solve  # noqa: F401  importing them registers what they hold
from sparseworks.core.allocator import ALLOCATORS, Allocator
from sparseworks.core.budget import Density
from sparseworks.core.pattern import Pattern
from sparseworks.core.patterns import EXAMPLES
from sparseworks.core.score import Score
from sparseworks.core.select import select_across
from sparseworks.core.solver import REPAIRS, SOLVERS, Select, Solver
from sparseworks.core.stats import Gram, Stats
from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, Format
from sparseworks.testing.allocator import toy_evidence, toy_sites
from sparseworks.testing.examples import example, gathered, random_weight, require

SHAPES = ((8, 8), (16, 8))
DENSITY = 0.75  # leaves room for allocators that keep the first or the last layer dense


@dataclass
class Tally:
    """What was walked: complete combinations, and by format how many layers it packed and how many it refused."""

    combinations: int = 0
    packed: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)

    def add(self, formats: Sequence[Format], taken: Sequence[bool]) -> None:
        """Count one layer: which formats took it."""
        for format, packs in zip(formats, taken, strict=True):
            counted, name = self.packed if packs else self.refused, format.registered_name
            counted[name] = counted.get(name, 0) + 1


def check_composition(
    score: type[Score] | Score,
    *,
    patterns: Sequence[str | Pattern] = EXAMPLES,
    allocators: Iterable[Allocator] | None = None,
    solvers: Iterable[Solver] | None = None,
    formats: Iterable[Format] | None = None,
) -> Tally:
    """One score through the product of everything else (default: all that is registered), from weights to outputs.

    For every combination: the allocator's integers are met, the support is admitted by the pattern, values are exact zeros
    outside, and the packed form gives back the support, and to the bit the values that its first type can hold, or the format says why it refuses.

    Raises:
        AssertionError: with a sentence that names the combination and what broke.
    """
    toy = _Toy(example(score))
    allocators = [example(a) for a in (ALLOCATORS if allocators is None else allocators)]
    solvers = _all_solvers() if solvers is None else list(solvers)
    formats = list(FORMATS if formats is None else formats)
    tally = Tally()
    for pattern in map(Pattern.parse, patterns):
        packed: dict[tuple[int, int, Solver], list[bool]] = {}
        for allocator, solver in product(allocators, solvers):
            label = f"{type(toy.score).__name__} x {pattern} x {type(allocator).__name__} x {_label(solver)}"
            for i, target in enumerate(toy.targets(pattern, allocator, label)):
                at = (i, target, solver)
                if at not in packed:
                    packed[at] = _pack(formats, *_solved(toy, i, pattern, target, solver, label), label)
                tally.add(formats, packed[at])
            tally.combinations += len(formats)
    return tally


def _pack(formats: Sequence[Format], weight: Tensor, support: Support, label: str) -> list[bool]:
    values, taken = weight.numpy().tobytes(), []
    for format in formats:
        packs = _packs(format, values, support)
        require(not isinstance(packs, str), f"{label} x {format.registered_name}: {packs}")
        taken.append(bool(packs))
    return taken


def _all_solvers() -> list[Solver]:
    """Every registered solver, and `Select` with every registered repair."""
    others = [_brisk(example(s)) for s in SOLVERS if s is not Select]
    return [*(Select(example(r)) for r in REPAIRS), *others]


def _brisk(solver: Solver) -> Solver:
    """The solver with few iterations: how many there are says nothing about what composes."""
    known = {f.name for f in fields(solver)} & {"steps", "ramp", "iterations"}  # type: ignore[arg-type]
    return replace(solver, **{name: min(getattr(solver, name), 2) for name in known})  # type: ignore[type-var]


class _Toy:
    """Two layers 8 -> 8 -> 16 with a ReLU between them, their statistics, and the scores of one score."""

    def __init__(self, score: Score):
        self.score = score
        self.sites = toy_sites(SHAPES)
        self.weights = [random_weight(*shape, seed=i) for i, shape in enumerate(SHAPES)]
        needs = set().union(score.needs, {Gram}, *(s.needs for s in _all_solvers()))
        self.stats: list[Stats] = [gathered(needs, s.shape, site=s.name, seed=i) for i, s in enumerate(self.sites)]
        self.scores = [score(w, s) for w, s in zip(self.weights, self.stats, strict=True)]
        self._counts: dict[Allocator, dict[str, int]] = {}

    def targets(self, pattern: Pattern, allocator: Allocator, what: str) -> tuple[int, ...]:
        """Entries to keep in each layer, from the allocator or from the pattern where that fixes them."""
        if pattern.fixed_density is not None:
            return tuple(round(pattern.fixed_density * s.size) for s in self.sites)
        if pattern.across:
            masks = select_across(self.scores, round(DENSITY * sum(s.size for s in self.sites)))
            return tuple(int(m.sum()) for m in masks)
        if allocator not in self._counts:
            evidence = toy_evidence(allocator, self.sites, self.score)
            self._counts[allocator] = allocator(self.sites, Density(DENSITY), evidence=evidence)
        counts = self._counts[allocator]
        whole = sum(s.size for s in self.sites)
        require(sum(counts.values()) == round(DENSITY * whole), f"{what}: the counts {counts} miss the budget.")
        return tuple(counts[s.name] for s in self.sites)


def _solved(toy: _Toy, i: int, pattern: Pattern, target: int, solver: Solver, label: str) -> tuple[Tensor, Support]:
    weight, stats = toy.weights[i], toy.stats[i]
    alone = replace(pattern, across=False)
    keep = alone.counts(weight.shape, target)
    new, support = solver(weight, stats, toy.score, alone, keep)
    require(alone.admits(support), f"{label}: layer {i} has a support that the pattern does not admit.")
    require(not bool(new[~support.mask()].any()), f"{label}: layer {i} has values outside its support.")
    require(bool(torch.isfinite(new).all()), f"{label}: layer {i} holds NaN or infinity.")
    rows, cols = alone.unit.sizes(weight.shape)
    wanted = target if alone.inner else int(keep.sum()) * rows * cols
    require(support.count == wanted, f"{label}: layer {i} keeps {support.count} entries, not {wanted}.")
    return new, support


@lru_cache(maxsize=1 << 14)
def _packs(format: Format, values: bytes, support: Support) -> bool | str:
    """Whether the format takes the support; a sentence where what comes back is not what was packed."""
    dtype = format.dtypes[0]
    if format.refuses(support, dtype) is not None:
        return False
    weight = torch.frombuffer(bytearray(values), dtype=torch.float32).reshape(support.shape)
    unpacked, again = format.unpack(format.pack(weight, support, dtype=dtype))
    if again != support:
        return "another support comes back."
    return torch.equal(unpacked, format.rounded(weight, dtype)) or "other values come back."


@lru_cache
def _label(solver: Solver) -> str:
    repair = getattr(solver, "repair", None)
    return type(solver).__name__ + (f"({type(repair).__name__})" if repair is not None else "")
