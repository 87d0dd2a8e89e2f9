"""Channels of detectors: sparse factors under a penalty that falls, then one threshold for the network or one for each part of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.budget import even_split
from sparseworks.core.errors import BudgetError
from sparseworks.core.regime import REGIMES, Training
from sparseworks.weights.train.gammas import SparseGammas
from sparseworks.weights.train.units import on_units


@REGIMES.register("threshold_gammas")
@dataclass(frozen=True)
class ThresholdGammas(SparseGammas):
    """L1 on the factors of norms whose strength falls, rate * (1 - fall t / T) at step t of T; then the lowest |gamma| go.

    Without sections they are the lowest of all; with sections every section loses the same share of its units, each by a
    threshold of its own, so that no part of the network is emptied because its factors are small as a whole. In every coupling
    the best ceil(floor * units), at least one, stay.

    Source: Sabaghian, Keyvanrad and Moghadami, 2025, arXiv 2509.12918 (0.9 is theirs); Chu et al., 2022, arXiv 2306.01526,
    whose sections are parts of one scale and kind of module. Departure: neither states how a floor is kept.

    Attributes:
        fall: share of the rate that is gone at the end.
        sections: each some shell-style patterns of names of couplings, the first that fits counts; what none names is one more.
            "modules" = what lies in the same outermost module.
    """

    cut: float = 1.0
    fall: float = 0.9
    floor: float = 0.1
    sections: tuple[tuple[str, ...], ...] | Literal["modules"] = ()

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.fall <= 1:
            raise BudgetError(f"`fall` is a share in [0, 1], got {self.fall}.")
        if self.mark is not None:
            raise BudgetError("Thresholds are found at the end, nothing is marked before: leave `mark` out.")

    def attach(self, run: Training) -> None:
        """Refuse sections and floors that the budget cannot keep, before anything is trained."""
        groups = on_units(run).units.groups
        keep_above(groups.by_coupling(torch.zeros(groups.total)), self.removed(run), self.floor, self.sections)

    def before(self, run: Training) -> None:
        """Add the gradient of the penalty as strong as it is now."""
        now = self.rate * (1 - self.fall * run.progress)
        SparseGammas.before(replace(self, rate=now), run)

    def change(self, run: Training) -> None:
        """Cut below the thresholds."""
        units = on_units(run).units
        scores = units.groups.by_coupling(self.scored(run))
        kept = keep_above(scores, self.removed(run), self.floor, self.sections)
        alive = torch.cat([kept[c.name] for c in units.groups.couplings]).to(units.alive.device)
        if not torch.equal(alive, units.alive):
            on_units(run).keep_units(alive)

    def end(self, run: Training) -> None:
        """Cut, if that has not been done."""
        if bool(on_units(run).units.alive.all()):
            self.change(run)


def keep_above(
    scores: Mapping[str, Float[Tensor, " units"]],
    removed: int,
    floor: float = 0.0,
    sections: Sequence[Sequence[str]] | Literal["modules"] = (),
) -> dict[str, Bool[Tensor, " units"]]:
    """Which units of every coupling stay when `removed` in all go: in every section those of the lowest scores, but for the floor.

    Units of equal score go in the order of the couplings.

    Args:
        scores: name of a coupling -> score of its units.
        removed: of all units; sections share it in proportion to their units.
        floor, sections: as in `ThresholdGammas`.

    Raises:
        BudgetError: the floors leave too few units to remove, or a section names nothing.
    """
    if isinstance(sections, str):
        if sections != "modules":
            raise BudgetError(f'Sections are tuples of patterns, or "modules", got {sections!r}.')
        sections = [[f"{outer}.*"] for outer in dict.fromkeys(name.partition(".")[0] for name in scores)]
    members: list[list[str]] = [[] for _ in range(len(sections) + 1)]
    for name in scores:
        fits = (k for k, patterns in enumerate(sections) if any(fnmatchcase(name, p) for p in patterns))
        members[next(fits, len(sections))].append(name)
    empty = next((s for s, names in zip(sections, members, strict=False) if not names), None)
    if empty is not None:
        raise BudgetError(f"Section {tuple(empty)} names none of the couplings {', '.join(scores)}.")
    counts = even_split(removed, [sum(len(scores[n]) for n in names) for names in members])
    kept = {name: torch.ones(len(s), dtype=torch.bool) for name, s in scores.items()}
    for names, count in zip(members, counts, strict=True):
        weakest = sorted(_candidates(scores, names, floor), key=lambda unit: unit[0])
        if count > len(weakest):
            raise BudgetError(
                f"{count} units have to go from {', '.join(names)}, and with a floor of {floor:.0%} only {len(weakest)} can."
            )
        for _, name, unit in weakest[:count]:
            kept[name][unit] = False
    return kept


def _candidates(
    scores: Mapping[str, Float[Tensor, " units"]], names: Sequence[str], floor: float
) -> list[tuple[float, str, int]]:
    """(score, coupling, unit) of all that may go."""
    found = []
    for name in names:
        values = scores[name].detach().double().cpu()
        safe = max(1, math.ceil(floor * len(values) - 1e-9))
        order = values.argsort(descending=True, stable=True)
        found += [(float(values[i]), name, i) for i in sorted(order[safe:].tolist())]
    return found
