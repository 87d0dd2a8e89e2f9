"""Scores from the inputs of a layer: input norm (Wanda's factor) and OBS saliency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.score import SCORES
from sparseworks.core.stats import Gram, InputMoments, Stat, Stats
from sparseworks.scores.entrywise import Entrywise, fitting, like, wide
from sparseworks.solve.cholesky import SweepFactor, inverse_diagonal


@SCORES.register("input_norm")
@dataclass(frozen=True)
class InputNorm(Entrywise):
    """||X_j||_2 / sqrt(tokens) for every entry of column j; `Magnitude() * InputNorm()` is Wanda's score.

    Source: Sun et al., 2023, arXiv 2306.11695. The constant 1 / sqrt(tokens) orders nothing within a site and makes sites
    comparable.
    """

    needs: ClassVar[frozenset[type[Stat]]] = frozenset({InputMoments})

    @property
    def rowwise(self) -> bool:
        """Yes."""
        return True

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """The norms of the inputs `at`, one row like the other."""
        norm = like(fitting(stats, InputMoments, weight).norm, weight)[at]
        return norm.expand(weight.shape[0], -1)


@SCORES.register("obs")
@dataclass(frozen=True)
class OBS(Entrywise):
    """w_ij^2 / [H^-1]_jj with H = X^T X / tokens + damp * mean(diagonal) * I: error of removing w_ij, the others adapting.

    Inputs that are never active (H_jj = 0) score 0. Inside an OBS sweep [H^-1]_jj is that of the columns not yet swept,
    which the sweep holds already.

    Source: Hassibi and Stork, 1992; damping as Frantar and Alistarh, 2023, arXiv 2301.00774.
    """

    damp: float = 0.01
    needs: ClassVar[frozenset[type[Stat]]] = frozenset({Gram})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """w^2 / [H^-1]_jj on the columns `at`."""
        gram = fitting(stats, Gram, weight)
        pivots = stats[SweepFactor].pivots if SweepFactor in stats else inverse_diagonal(gram, self.damp)
        saliency = wide(weight[:, at]).square() / like(pivots, weight)[at]
        return saliency * (gram.total.diagonal() > 0).to(saliency)[at]
