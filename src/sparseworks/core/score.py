"""Score: how important is each entry. Scores know nothing of patterns; they declare what statistics they need and compose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.registry import Registry
from sparseworks.core.stats import Stat, Stats

SCORES: Registry[type[Score]] = Registry("score", "sparseworks.scores")


class Score:
    """`score(weight, stats) -> importance`, same shape as the weight; higher is kept.

    Scores compose: `Magnitude() * InputNorm()`, `0.5 * a + b`, `a.normalised()`.
    """

    needs: frozenset[type[Stat]] = frozenset()
    registered_name: ClassVar[str]

    @property
    def rowwise(self) -> bool:
        """Whether a row's scores depend on that row alone, and cost the same: a matrix may be scored some rows at a time."""
        return False

    def __call__(self, weight: Float[Tensor, "rows cols"], stats: Stats) -> Float[Tensor, "rows cols"]:
        """Importance of every entry."""
        raise NotImplementedError

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """Scores of the columns `at` only; solvers that sweep over columns call this with partly updated weights."""
        return self(weight, stats)[:, at]

    def __mul__(self, other: Score | float) -> Score:
        if isinstance(other, int | float):
            return Scaled(self, float(other))
        return Product(self, other) if isinstance(other, Score) else NotImplemented

    def __rmul__(self, other: float) -> Score:
        return Scaled(self, float(other)) if isinstance(other, int | float) else NotImplemented

    def __add__(self, other: Score) -> Score:
        return Sum(self, other) if isinstance(other, Score) else NotImplemented

    def normalised(self) -> Score:
        """Divided by the mean of its absolute value, so that sites of different scale can be compared or added."""
        return Normalised(self)


@SCORES.register("product")
@dataclass(frozen=True)
class Product(Score):
    """a * b, entry by entry."""

    a: Score
    b: Score

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Needs of both."""
        return self.a.needs | self.b.needs

    @property
    def rowwise(self) -> bool:
        """Where both are."""
        return self.a.rowwise and self.b.rowwise

    def __call__(self, weight: Float[Tensor, "rows cols"], stats: Stats) -> Float[Tensor, "rows cols"]:
        """a * b."""
        return self.a(weight, stats) * self.b(weight, stats)

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """a * b on the columns `at`."""
        return self.a.columns(weight, stats, at) * self.b.columns(weight, stats, at)


@SCORES.register("sum")
@dataclass(frozen=True)
class Sum(Score):
    """a + b, entry by entry."""

    a: Score
    b: Score

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Needs of both."""
        return self.a.needs | self.b.needs

    @property
    def rowwise(self) -> bool:
        """Where both are."""
        return self.a.rowwise and self.b.rowwise

    def __call__(self, weight: Float[Tensor, "rows cols"], stats: Stats) -> Float[Tensor, "rows cols"]:
        """a + b."""
        return self.a(weight, stats) + self.b(weight, stats)

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """a + b on the columns `at`."""
        return self.a.columns(weight, stats, at) + self.b.columns(weight, stats, at)


@SCORES.register("scaled")
@dataclass(frozen=True)
class Scaled(Score):
    """factor * a."""

    a: Score
    factor: float

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Needs of `a`."""
        return self.a.needs

    @property
    def rowwise(self) -> bool:
        """Where `a` is."""
        return self.a.rowwise

    def __call__(self, weight: Float[Tensor, "rows cols"], stats: Stats) -> Float[Tensor, "rows cols"]:
        """factor * a."""
        return self.factor * self.a(weight, stats)

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """factor * a on the columns `at`."""
        return self.factor * self.a.columns(weight, stats, at)


@SCORES.register("normalised")
@dataclass(frozen=True)
class Normalised(Score):
    """a / mean(|a|), the mean over finite entries (zero stays zero, +-inf stays itself)."""

    a: Score

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Needs of `a`."""
        return self.a.needs

    def __call__(self, weight: Float[Tensor, "rows cols"], stats: Stats) -> Float[Tensor, "rows cols"]:
        """a / mean(|a|)."""
        s = self.a(weight, stats)
        finite = s[torch.isfinite(s)].abs()
        mean = finite.mean() if finite.numel() else s.new_tensor(0.0)
        return s / mean if float(mean) > 0 else s
