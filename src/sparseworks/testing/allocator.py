"""What every allocator must hold."""

from __future__ import annotations

from collections.abc import Mapping

from sparseworks.core.allocator import Allocator, Evidence
from sparseworks.core.budget import Bytes, Count, Density
from sparseworks.core.errors import BudgetError
from sparseworks.core.site import Site
from sparseworks.scores import Magnitude
from sparseworks.testing.examples import example, gathered, random_weight, refused, require

SHAPES = ((16, 8), (8, 16), (32, 8), (1, 24), (40, 40))


def toy_sites(shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[Site]:
    """Linear sites "0", "1", ... of the given shapes."""
    return [Site(str(i), "linear", f"{i}.weight", shape) for i, shape in enumerate(shapes)]


def toy_evidence(allocator: Allocator, sites: list[Site], score: object = None) -> Evidence:
    """Everything an allocator may look at, for random weights: two sites a block, errors that grow as weights go."""
    score = score or Magnitude()
    needs = allocator.needs | score.needs  # type: ignore[attr-defined]
    weights = {s.name: random_weight(*s.shape, seed=i) for i, s in enumerate(sites)}

    def error(name: str, density: float) -> float:
        energy = weights[name].square().flatten().sort().values
        return float(energy[: round((1 - density) * energy.numel())].sum() / energy.sum())

    def trial(counts: Mapping[str, int], tokens: int, draw: int) -> float:
        del tokens, draw
        return sum(error(s.name, counts[s.name] / s.size) for s in sites)

    return Evidence(
        weight=weights.__getitem__,
        stats={s.name: gathered(needs, s.shape, site=s.name, seed=i) for i, s in enumerate(sites)},
        score=score,  # type: ignore[arg-type]
        block={s.name: i // 2 for i, s in enumerate(sites)},
        error=error,
        trial=trial,
        block_error=lambda counts, tokens: sum(
            error(s.name, counts[s.name] / s.size) for s in sites if s.name in counts
        ),
    )


def check_allocator(allocator: type[Allocator] | Allocator) -> None:
    """Integers within every site that sum to the budget exactly, for budgets of several types; the same each time.

    A budget that the allocator cannot meet (its dense sites alone exceed it) is refused with BudgetError.

    Raises:
        AssertionError: with a sentence that names the allocator and what broke.
    """
    subject: Allocator = example(allocator)
    name = type(subject).__name__
    for shapes in (SHAPES, SHAPES[:1], SHAPES[:2], SHAPES[::-1]):
        sites = toy_sites(shapes)
        size = sum(s.size for s in sites)
        for total in sorted({0, 1, size // 10, size // 3, size // 2, size - 1, size}):
            met = _budget(subject, name, sites, total)
        require(met, f"{name} cannot keep everything.")
    _other_types(subject, name)
    refused(
        lambda: subject([], Density(0.5), evidence=toy_evidence(subject, [])),
        BudgetError,
        f"{name} must refuse an empty list of sites.",
    )


def _budget(allocator: Allocator, name: str, sites: list[Site], total: int) -> bool:
    evidence = toy_evidence(allocator, sites)
    try:
        counts = allocator(sites, Count(total), evidence=evidence)
    except BudgetError as error:
        require(len(str(error)) > 20, f"{name} refuses {total} entries without a reason.")
        return False
    require(set(counts) == {s.name for s in sites}, f"{name} gives counts for {sorted(counts)}, not for every site.")
    require(all(type(c) is int for c in counts.values()), f"{name} gives counts that are not integers: {counts}.")
    require(sum(counts.values()) == total, f"{name} gives {sum(counts.values())} entries for a budget of {total}.")
    require(all(0 <= counts[s.name] <= s.size for s in sites), f"{name} exceeds a site: {counts}.")
    again = allocator(sites, Count(total), evidence=toy_evidence(allocator, sites))
    require(again == counts, f"{name} allocates otherwise when asked again.")
    return True


def _other_types(allocator: Allocator, name: str) -> None:
    sites = toy_sites()
    evidence, size = toy_evidence(allocator, sites), sum(s.size for s in sites)
    by_share = allocator(sites, Density(0.75), evidence=evidence)
    require(sum(by_share.values()) == round(0.75 * size), f"{name} misses a density of 0.75.")
    by_bytes = allocator(sites, Bytes(3.0 * size), cost=lambda _, kept: 4.0 * kept, evidence=evidence)
    require(abs(sum(by_bytes.values()) - 0.75 * size) <= len(sites), f"{name} misses a budget in bytes.")
