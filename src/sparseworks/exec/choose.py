"""From measured races to a ladder: the fastest kernel per number of rows, with at most two packed forms in a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isqrt

from sparseworks.exec.kernel import KERNELS
from sparseworks.exec.ladder import DENSE
from sparseworks.exec.race import Entry, Race

MARGIN = 1.03
MOST_FORMS = 2
_MEMORY_PRICE = 0.01

Form = tuple[str, str]


@dataclass(frozen=True)
class Choice:
    """What runs at every planned number of rows, and the ladder that does it (empty: the layer stays as it is)."""

    kernels: Mapping[int, str]
    rungs: tuple[tuple[int, str], ...]


def wins(entry: Entry) -> bool:
    """Faster than dense beyond noise: ahead by more than 3 % in at least three of four rounds of the long heat."""
    return entry.final and entry.low > MARGIN


def form_of(kernel: str) -> Form:
    """What a kernel reads: format and value type."""
    found = KERNELS.get(kernel)
    return found.format, str(found.value_dtype)


def choose(
    races: Mapping[int, Race],
    *,
    size: Callable[[Form], float],
    rows: Mapping[int, int] | None = None,
    dense: str | None = DENSE,
    objective: str = "latency",
) -> Choice:
    """The best admissible kernels. Every kernel that is chosen for a number of rows beats dense there beyond noise.

    A layer holds at most two packed forms, counting a dense one for numbers of rows at which dense is faster: each is a
    copy of the weight in memory. Forms of maps and forms of rows do not go together.

    Args:
        races: planned number of rows -> race.
        size: bytes of a form over those of the dense weight.
        rows: planned number of rows -> rows of this layer's product, where they differ.
        dense: kernel that stands for the dense layer beside a packed form, None if there is none for its type.
        objective: "latency": least time relative to dense, mean over the numbers of rows; "bytes": least memory.
    """
    admissible = {batch: [k for k, e in race.entries.items() if wins(e)] for batch, race in races.items()}
    used = dict.fromkeys(form_of(k) for kernels in admissible.values() for k in kernels)
    dense_form = form_of(dense) if dense else None
    best, least = Choice(dict.fromkeys(races, DENSE), ()), float("inf")
    of_maps = {form_of(k) for race in races.values() for k in race.entries if KERNELS.get(k).of_maps}
    for forms in _sets(list(dict.fromkeys([*used, *([dense_form] if dense_form else [])]))):
        if of_maps.intersection(forms) and not of_maps.union([dense_form]).issuperset(forms):
            continue
        picked = {batch: _pick(race, admissible[batch], forms, dense_form) for batch, race in races.items()}
        kernels = {batch: kernel for batch, kernel in picked.items() if kernel is not None}
        if len(kernels) < len(races) or set(kernels.values()) == {DENSE}:
            continue
        at = {batch: batch for batch in races} if rows is None else rows
        rungs = ladder_rungs({at[batch]: dense or k if k == DENSE else k for batch, k in kernels.items()})
        shares = [1.0 if k == DENSE else 1 / races[batch].entries[k].ratio for batch, k in kernels.items()]
        cost = OBJECTIVES[objective](sum(shares) / len(shares), sum(size(f) for f in {form_of(k) for _, k in rungs}))
        if cost < least:
            best, least = Choice(kernels, rungs), cost
    return best


def _sets(forms: Sequence[Form]) -> list[tuple[Form, ...]]:
    return [c for size in range(1, MOST_FORMS + 1) for c in combinations(forms, size)]


def _pick(race: Race, admissible: Sequence[str], forms: Sequence[Form], dense: Form | None) -> str | None:
    fitting = [k for k in admissible if form_of(k) in forms]
    if fitting:
        return min(fitting, key=lambda k: race.entries[k].us)
    return DENSE if dense in forms else None


def _latency(share: float, size: float) -> float:
    """A dense copy's worth of memory must earn a hundredth of the dense time."""
    return share + _MEMORY_PRICE * size


def _bytes(share: float, size: float) -> float:
    return size


OBJECTIVES: Mapping[str, Callable[[float, float], float]] = {"latency": _latency, "bytes": _bytes}


def ladder_rungs(kernels: Mapping[int, str]) -> tuple[tuple[int, str], ...]:
    """Rungs for rows -> kernel; between two planned numbers of rows the change comes at their geometric mean."""
    rungs: list[tuple[int, str]] = []
    previous = 0
    for rows in sorted(kernels):
        if not rungs or rungs[-1][1] != kernels[rows]:
            rungs.append((0 if not rungs else isqrt(previous * rows) + 1, kernels[rows]))
        previous = rows
    return tuple(rungs)
