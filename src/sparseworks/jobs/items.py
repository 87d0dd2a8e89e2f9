"""Items of the search's knapsack: single sites, and whole layers, whose six matrices save more together than each alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparseworks.jobs.levels import Level

# Of the time of MiniLM with 65 % of its weights, one call per layer saved 28 % at 4096 rows (40 % at 12). The measured speed of a
# variant corrects the next aim, so the figure only has to order the choices.
SAVED = 0.28
_POINTS = 200  # of a layer's front


@dataclass(frozen=True)
class Option:
    """A level for every site of an item (indices into its levels): microseconds and summed error."""

    us: float
    error: float
    levels: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """Sites that are decided together, and the choices that no other choice beats."""

    sites: tuple[str, ...]
    options: tuple[Option, ...]


def items(table: Mapping[str, Sequence[Level]], layers: Mapping[str, Sequence[str]], around_us: float) -> list[Item]:
    """One item per whole layer of which every matrix has a level that runs in one call, and one per site of the rest.

    A layer's options are all mixtures of its sites' levels, and those where all run in one call at (1 - SAVED) of the time of the
    six and of what lies around them.

    Args:
        table: site -> levels.
        layers: layer -> its six sites.
        around_us: time of a layer outside its matrices.
    """
    found: list[Item] = []
    for sites in layers.values():
        if all(any(level.whole for level in table.get(site, ())) for site in sites):
            found.append(Item(tuple(sites), _options([table[site] for site in sites], around_us)))
    within = {site for item in found for site in item.sites}
    return found + [Item((site,), _singles(levels)) for site, levels in table.items() if site not in within]


def _options(levels: Sequence[Sequence[Level]], around_us: float) -> tuple[Option, ...]:
    apart = _mixtures([_singles(each) for each in levels])
    together = _mixtures([tuple(o for o in _singles(each) if each[o.levels[0]].whole) for each in levels])
    saved = [Option(max(o.us - SAVED * (o.us + around_us), 0.0), o.error, o.levels) for o in together]
    return tuple(_front([*apart, *saved]))


def _singles(levels: Sequence[Level]) -> tuple[Option, ...]:
    return tuple(Option(level.us, level.error, (i,)) for i, level in enumerate(levels))


def _mixtures(sites: Sequence[Sequence[Option]]) -> list[Option]:
    mixed = [Option(0.0, 0.0, ())]
    for options in sites:
        mixed = _front([Option(a.us + b.us, a.error + b.error, a.levels + b.levels) for a in mixed for b in options])
        if len(mixed) > _POINTS:
            mixed = [mixed[round(i * (len(mixed) - 1) / (_POINTS - 1))] for i in range(_POINTS)]
    return mixed


def _front(options: Sequence[Option]) -> list[Option]:
    """Options that no other beats in both time and error; least error first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.error, o.us)):
        if not kept or option.us < kept[-1].us:
            kept.append(option)
    return kept
