"""What a cycle tells those who take part in it, and what it gives back: laps, rounds, and the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparseworks.core.support import Support


@dataclass(frozen=True)
class Lap:
    """One training of a cycle, as the function that trains is told.

    Attributes:
        round: prunings before it.
        copy: which of the trainings from the same start.
        density: share of the entries that is kept in it.
        seed: differs from one lap to another; set as torch's seed too.
    """

    round: int
    copy: int
    density: float
    seed: int


Train = Callable[[nn.Module, Lap], Any]
"""`train(model, lap)` trains the model in place with any optimiser of its own."""


@dataclass(frozen=True)
class Round:
    """What one round ended with.

    Attributes:
        density: share of the entries kept.
        quality: `evaluate(model)` at its end, None without.
        copies: the same of every copy before averaging (one copy: nothing).
        steps: optimiser steps of all copies.
    """

    density: float
    quality: float | None
    copies: tuple[float, ...]
    steps: int
    seconds: float


Each = Callable[[Round, nn.Module, dict[str, Support]], None]
"""`each(done, model, supports)` after a round."""


@dataclass(frozen=True)
class Cycled:
    """What `cycles` did: the final supports (`io.save` takes them), and every round, the first of them before any pruning."""

    supports: dict[str, Support]
    rounds: tuple[Round, ...]
