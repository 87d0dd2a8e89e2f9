"""When the support changes: a schedule maps progress in [0, 1] to how much of the final sparsity (or of a fraction) holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from sparseworks.core.errors import BudgetError
from sparseworks.core.registry import Registry

SCHEDULES: Registry[type[Schedule]] = Registry("schedule")


class Schedule:
    """`schedule(progress) -> value`; progress is clamped to [0, 1]."""

    monotone: ClassVar[bool] = True
    """Whether the value never turns round on its way."""

    def __call__(self, progress: float) -> float:
        """Value at `progress`."""
        return self.value(min(max(progress, 0.0), 1.0))

    def value(self, t: float) -> float:
        """Value at t in [0, 1]."""
        raise NotImplementedError


@SCHEDULES.register("once")
@dataclass(frozen=True)
class Once(Schedule):
    """All at once: 1 at any progress (one shot, at initialisation)."""

    def value(self, t: float) -> float:
        """1."""
        return 1.0


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """The same at any progress: SET's drop fraction (Mocanu et al., 2018, arXiv 1707.04780)."""

    at: float = 0.3

    def value(self, t: float) -> float:
        """`at`."""
        return self.at


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(Schedule):
    """start + (end - start) t."""

    start: float = 0.0
    end: float = 1.0

    def value(self, t: float) -> float:
        """Straight line."""
        return self.start + (self.end - self.start) * t


@SCHEDULES.register("cubic")
@dataclass(frozen=True)
class Cubic(Schedule):
    """s_f + (s_0 - s_f)(1 - t)^3: gradual magnitude pruning (Zhu & Gupta, 2017, arXiv 1710.01878)."""

    start: float = 0.0
    end: float = 1.0

    def value(self, t: float) -> float:
        """Fast first, slow at the end."""
        return self.end + (self.start - self.end) * (1.0 - t) ** 3


@SCHEDULES.register("quadratic")
@dataclass(frozen=True)
class Quadratic(Schedule):
    """s_f + (s_0 - s_f)(1 - t)^2: the polynomial ramp of shared spatial masks (Grimaldi et al., 2023, arXiv 2309.06626)."""

    start: float = 0.0
    end: float = 1.0

    def value(self, t: float) -> float:
        """Fast first, slow at the end, less so than `cubic`."""
        return self.end + (self.start - self.end) * (1.0 - t) ** 2


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """end + (start - end)/2 (1 + cos(pi t)): RigL's drop fraction, with end 0 (Evci et al., 2020, arXiv 1911.11134)."""

    start: float = 0.3
    end: float = 0.0

    def value(self, t: float) -> float:
        """From `start` to `end`."""
        return self.end + (self.start - self.end) / 2 * (1.0 + math.cos(math.pi * t))


@SCHEDULES.register("exponential")
@dataclass(frozen=True)
class Exponential(Schedule):
    """exp(-rate t): how a dropped weight's share fades (Bambhaniya et al., 2024, arXiv 2402.04744)."""

    rate: float = 5.0

    def value(self, t: float) -> float:
        """From 1 to exp(-rate)."""
        return math.exp(-self.rate * t)


@SCHEDULES.register("annealing")
@dataclass(frozen=True)
class Annealing(Schedule):
    """start max((1 + cos(pi t)) / 2, 1 - sigmoid(12 t - 6)): which share of a gradient passes (Kundu et al., 2023, arXiv 2304.06941)."""

    start: float = 0.75

    def value(self, t: float) -> float:
        """From `start` to (almost) 0."""
        return self.start * max((1.0 + math.cos(math.pi * t)) / 2, 1.0 - 1.0 / (1.0 + math.exp(6.0 - 12.0 * t)))


@SCHEDULES.register("harmonic")
@dataclass(frozen=True)
class Harmonic(Schedule):
    """t - amplitude (1 - t) sin^2(pi cycles t), not below 0: a ramp that gives density back `cycles` times.

    Source: Stamatelis et al., 2025, arXiv 2503.15172, as far as its text was to be had: the damping is the best reading.
    """

    cycles: int = 4
    amplitude: float = 0.4
    monotone = False

    def value(self, t: float) -> float:
        """From 0 to 1, up and down on the way."""
        return max(t - self.amplitude * (1.0 - t) * math.sin(math.pi * self.cycles * t) ** 2, 0.0)


@SCHEDULES.register("stairs")
@dataclass(frozen=True)
class Stairs(Schedule):
    """0 on the first of `count` equal steps, then up from `first` by (last - first) / (count - 1) a step: an incremental penalty.

    As in the authors' code the last step is one rise below `last`. Source: Long et al., 2023, arXiv 2309.06805 (FedDIP).
    """

    first: float = 5e-4
    last: float = 1e-3
    count: int = 20

    def __post_init__(self):
        if self.count < 2:
            raise BudgetError(f"Stairs have at least two steps, got {self.count}.")

    def value(self, t: float) -> float:
        """The step that t lies on."""
        step = min(int(t * self.count + 1e-9), self.count - 1)
        return self.first + (self.last - self.first) / (self.count - 1) * (step - 1) if step else 0.0


@SCHEDULES.register("rounds")
@dataclass(frozen=True)
class Rounds(Schedule):
    """Prune in `count` rounds with scores measured anew: density p^(k / count) after round k (Tanaka et al., 2020, arXiv 2006.05467)."""

    count: int = 100

    def __post_init__(self):
        if self.count < 1:
            raise BudgetError(f"Pruning takes at least one round, got {self.count}.")

    def shares(self, density: float) -> list[float]:
        """Density after each round; the last is `density`."""
        return [density ** self.value(k / self.count) for k in range(1, self.count + 1)]

    def value(self, t: float) -> float:
        """Share of the logarithm of the final density reached: t."""
        return t


@SCHEDULES.register("survivors")
@dataclass(frozen=True)
class Survivors(Schedule):
    """Remove the share `rate` of what is left, round after round: density (1 - rate)^k, the last round exactly the final one.

    Source: Frankle and Carbin, 2019, arXiv 1803.03635 (20 % a round).
    """

    rate: float = 0.2

    def __post_init__(self):
        if not 0.0 < self.rate < 1.0:
            raise BudgetError(f"A round removes a share in (0, 1) of what is left, got {self.rate}.")

    def shares(self, density: float) -> list[float]:
        """Density after each round; the last is `density`."""
        found, left = [], 1.0 - self.rate
        while left > density * (1 + 1e-9):
            found.append(left)
            left *= 1.0 - self.rate
        return [*found, density]

    def value(self, t: float) -> float:
        """Share of the logarithm of the final density reached: t."""
        return t


@dataclass(frozen=True)
class Cadence:
    """At which steps the support may change: every `every` steps in [start, stop)."""

    every: int = 100
    start: int = 0
    stop: int | None = None

    def __post_init__(self):
        if self.every < 1 or self.start < 0 or (self.stop is not None and self.stop < self.start):
            raise BudgetError(f"A cadence needs every >= 1 and 0 <= start <= stop, got {self}.")

    def __call__(self, step: int) -> bool:
        """Whether step `step` is due."""
        inside = step >= self.start and (self.stop is None or step < self.stop)
        return inside and (step - self.start) % self.every == 0
