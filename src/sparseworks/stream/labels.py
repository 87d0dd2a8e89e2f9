"""Labels of channels, united where channels live or die together: those with one label at the end are one unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int

Labels = Int[np.ndarray, " channels"]


@dataclass(frozen=True)
class Use:
    """A layer's axis and the label of each of its channels; `repeats` > 1 runs of them lie one after the other."""

    module: str
    axis: Literal["rows", "cols", "norm"]
    labels: Labels
    repeats: int = 1


@dataclass
class Union:
    """Labels, some of them united, some fixed."""

    parents: list[int] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)

    def fresh(self, count: int) -> Labels:
        """New labels."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, label: int) -> int:
        """What stands for all labels united with this one."""
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def unite(self, one: Labels, other: Labels) -> None:
        """Pair by pair."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            a, b = sorted((self.root(a), self.root(b)))
            self.parents[b] = a

    def fix(self, labels: Labels) -> None:
        """Channels that stay whatever happens."""
        self.fixed.update(labels.tolist())

    def roots(self, labels: Labels) -> list[int]:
        """`root` of each."""
        return [self.root(label) for label in labels.tolist()]
