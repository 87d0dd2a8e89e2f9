"""Scores of sparse training: exploration, unfired entries, momentum, correlation and activity of units, modular starts, sign ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.core.score import SCORES, Score
from sparseworks.core.stats import STATS, Stat, Stats, WeightGradient
from sparseworks.scores.entrywise import Entrywise, fitting, like, wide
from sparseworks.scores.magnitude import Random


@STATS.register("visits")
class Visits(Stat):
    """In how many of the supports so far each entry was kept: `sum` (rows, cols) over `count` supports."""

    source = "support"
    state_names = ("sum",)

    def __init__(self, rows: int, cols: int):
        super().__init__(rows, cols)
        self.sum = torch.zeros(rows, cols, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add one support, True = kept, `(rows, cols)`."""
        if tuple(x.shape) != (self.rows, self.cols):
            raise ShapeError(f"Visits expects a {self.rows}x{self.cols} support, got {tuple(x.shape)}.")
        self.sum += self._matrix(x.double(), self.cols).cpu()
        self.count += 1 - self.rows

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> Self:
        """The statistic of a `state` with `visits` and `supports`, see `visit`."""
        stat = cls(*state["visits"].shape)
        stat.sum, stat.count = state["visits"].double().cpu(), int(state["supports"])
        return stat


def visit(state: dict[str, Tensor], mask: Bool[Tensor, "rows cols"]) -> None:
    """Count one more support in the state of a site."""
    state["visits"] = state.get("visits", torch.zeros_like(mask, dtype=torch.int32)) + mask
    state["supports"] = state.get("supports", torch.zeros((), dtype=torch.int32)) + 1


@STATS.register("correlation")
class Correlation(Stat):
    """Moments of inputs and outputs beside each other: sums, squares, and sum_t y_i x_j `(rows, cols)`, float64."""

    source = "layer"
    state_names = ("sum", "square", "cross")

    def __init__(self, rows: int, cols: int):
        super().__init__(rows, cols)
        self.sum = torch.zeros(cols + rows, dtype=torch.float64)
        self.square = torch.zeros(cols + rows, dtype=torch.float64)
        self.cross = torch.zeros(rows, cols, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add a batch, tokens x (cols + rows): inputs, then outputs."""
        x = self._matrix(x, self.cols + self.rows).double().cpu()
        self.sum += x.sum(dim=0)
        self.square += x.square().sum(dim=0)
        self.cross += x[:, self.cols :].T @ x[:, : self.cols]

    @property
    def matrix(self) -> Float[Tensor, "rows cols"]:
        """Pearson correlation of output i and input j over tokens; 0 where one of them is constant."""
        n = max(self.count, 1)
        mean = self.sum / n
        spread = (self.square / n - mean.square()).clamp(min=0).sqrt()
        spread = torch.where(spread > 1e-7 * mean.abs(), spread, torch.inf)
        covariance = self.cross / n - mean[self.cols :, None] * mean[None, : self.cols]
        return covariance / (spread[self.cols :, None] * spread[None, : self.cols])


@SCORES.register("exploration")
@dataclass(frozen=True)
class Exploration(Entrywise):
    """ln t / (N_ij + eps): t supports so far, in N_ij of which the entry was kept; rare entries score high.

    DST-EE grows by `Gradient() + c * Exploration()`; c has to fit the size of the gradients and is tuned for the task.

    Source: Huang et al., 2022, arXiv 2211.16667.
    """

    eps: float = 1.0
    needs: ClassVar[frozenset[type[Stat]]] = frozenset({Visits})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """The bonus of the columns `at`."""
        seen = fitting(stats, Visits, weight)
        bonus = torch.tensor(float(max(seen.count, 1))).log() / (seen.sum[:, at].clamp(min=0) + self.eps)
        return like(bonus, weight)


@SCORES.register("unfired")
@dataclass(frozen=True)
class Unfired(Entrywise):
    """1 + u_ij for entries that no support has kept yet, else u_ij ~ U[0, 1): at random, those never tried first.

    Source: Yildirim et al., 2023, arXiv 2308.14831 (growth "unfired").
    """

    seed: int = 0
    needs: ClassVar[frozenset[type[Stat]]] = frozenset({Visits})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """The columns `at`."""
        never = fitting(stats, Visits, weight).sum[:, at] <= 0
        return Random(self.seed).columns(weight, stats, at) + like(never, weight)


@SCORES.register("momentum")
@dataclass(frozen=True)
class Momentum(Entrywise):
    """|mean g| / (sqrt(mean g^2) + eps): entries whose gradients agree, whatever their size (the step that Adam would take).

    Source: Yildirim et al., 2023, arXiv 2308.14831 (growth "momentum").
    """

    eps: float = 1e-8
    needs: ClassVar[frozenset[type[Stat]]] = frozenset({WeightGradient})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """The ratios of the columns `at`."""
        seen = fitting(stats, WeightGradient, weight)
        return like(seen.mean[:, at].abs() / (seen.mean_square[:, at].sqrt() + self.eps), weight)


@STATS.register("activity")
class Activity(Stat):
    """sum_t max(y_i, 0) `(rows,)`: how much of a unit gets through its rectifier."""

    source = "output"
    state_names = ("sum",)

    def __init__(self, rows: int, cols: int):
        super().__init__(rows, cols)
        self.sum = torch.zeros(rows, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add a batch of outputs, tokens x rows."""
        self.sum += self._matrix(x, self.rows).double().relu().sum(dim=0).cpu()


@SCORES.register("unit_activity")
@dataclass(frozen=True)
class UnitActivity(Entrywise):
    """S_ij = sum_t max(y_i, 0), the same for all inputs of unit i (Gurbuz et al., 2023, arXiv 2305.18563)."""

    needs: ClassVar[frozenset[type[Stat]]] = frozenset({Activity})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """The activity, once for every column of `at`."""
        activity = like(fitting(stats, Activity, weight).sum, weight)
        return activity[:, None].expand(weight.shape)[:, at].clone()


@SCORES.register("hebbian")
@dataclass(frozen=True)
class Hebbian(Entrywise):
    """|corr(x_j, y_i)| over a batch of inputs x and outputs y (before the non-linearity): what fires together.

    Source: Konstantaropoulos et al., 2025, arXiv 2508.14140.
    """

    needs: ClassVar[frozenset[type[Stat]]] = frozenset({Correlation})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """The correlations of the columns `at`."""
        return like(fitting(stats, Correlation, weight).matrix[:, at], weight).abs()


@SCORES.register("modular")
@dataclass(frozen=True)
class Modular(Entrywise):
    """1 + u_ij where output and input lie in groups of the same number, else u_ij ~ U[0, 1): blocks first, links at random.

    Rows and columns are cut into `groups` runs of nearly equal length. A density above 1 / `groups` fills the blocks and
    spreads the rest at random; one below leaves random entries of the blocks only.

    Source: Konstantaropoulos et al., 2025, arXiv 2508.14140 (G2GNet).
    """

    groups: int = 8
    seed: int = 0

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """The columns `at`."""
        row, col = (torch.arange(n, device=weight.device) * self.groups // max(n, 1) for n in weight.shape)
        return Random(self.seed).columns(weight, stats, at) + (row[:, None] == col[None, at])


@SCORES.register("sign_rank")
@dataclass(frozen=True)
class SignRank(Score):
    """Rank of |w_ij| among the weights of its own sign, as a share in (0, 1]; zeros score 0.

    Dropping the share zeta of it drops the smallest positive and the largest negative weights, the share zeta of each: SET
    (Mocanu et al., 2018, arXiv 1707.04780).
    """

    def __call__(self, weight: Float[Tensor, "rows cols"], stats: Stats) -> Float[Tensor, "rows cols"]:
        """The ranks."""
        del stats
        w = wide(weight)
        score = torch.zeros_like(w)
        for own in (w > 0, w < 0):
            size = w[own].abs()
            score[own] = (size.argsort(stable=True).argsort() + 1).to(w) / max(size.numel(), 1)
        return score
