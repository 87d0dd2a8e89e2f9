"""Goal: what a search has to reach, and what it may use for it."""

from __future__ import annotations

from dataclasses import dataclass

from sparseworks.core.errors import BudgetError

PATTERNS = ("row", "block:16x1")
DENSITIES = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1)


class UnreachableError(BudgetError):
    """Nothing that a search may use makes the model faster."""


@dataclass(frozen=True)
class Goal:
    """What the sparse model must reach.

    Attributes:
        speedup: times faster than the dense model on the headline case, or None.
        max_drop: largest relative loss of quality, or None.
        patterns, densities: the levels a site may get besides dense.
    """

    speedup: float | None = None
    max_drop: float | None = None
    patterns: tuple[str, ...] = PATTERNS
    densities: tuple[float, ...] = DENSITIES

    def __post_init__(self):
        if self.speedup is None and self.max_drop is None:
            raise BudgetError("A goal needs a speed-up, a largest drop, or both.")
        if self.speedup is not None and self.speedup < 1:
            raise BudgetError(f"A speed-up is at least 1, got {self.speedup}.")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise BudgetError(f"A largest drop lies in [0, 1), got {self.max_drop}.")
        if not self.patterns or not self.densities:
            raise BudgetError("A search needs at least one pattern and one density.")

    def met(self, ratio: float, loss: float) -> bool:
        """Whether a measured speed-up and loss of quality satisfy the goal."""
        fast = self.speedup is None or ratio >= self.speedup
        return fast and (self.max_drop is None or loss <= self.max_drop)
