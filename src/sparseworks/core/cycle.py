"""Cycle: how rounds of train - prune - go on follow one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparseworks.core.errors import BudgetError
from sparseworks.core.registry import Registry

CYCLES: Registry[type[Cycle]] = Registry("cycle")


@CYCLES.register("cycle")
@dataclass(frozen=True)
class Cycle:
    """What happens between two prunings; how much each removes is the method's schedule.

    Attributes:
        rewind: after pruning the kept weights go back to where they were after this share of the first training (0 = the
            initialisation); None = they stay, and only the learning rate starts anew (fine-tuning).
        copies: trainings of the same support from the same start, which differ in their seed and are averaged.
        greedy: average in order of quality only what does not lower it, instead of all.
        tail: each training ends in the average of its weights since this share of it; None = in its last weights.
        activate: share of every pruning that goes to negative weights which moved least in the round, whatever their size.
    """

    rewind: float | None = None
    copies: int = 1
    greedy: bool = False
    tail: float | None = None
    activate: float = 0.0
    registered_name: ClassVar[str]

    def __post_init__(self):
        if self.copies < 1:
            raise BudgetError(f"A cycle trains at least one copy, got {self.copies}.")
        for what, value in (("rewind", self.rewind), ("tail", self.tail), ("activate", self.activate)):
            if value is not None and not 0.0 <= value < 1.0:
                raise BudgetError(f"`{what}` of a cycle is a share in [0, 1), got {value}.")

    @property
    def timed(self) -> bool:
        """Whether it must know how many optimiser steps one training takes."""
        return bool(self.rewind) or self.tail is not None
