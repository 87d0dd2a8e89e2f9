"""Scores from backward passes: gradient, SNIP, Taylor, GraSP, SynFlow, movement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.score import SCORES
from sparseworks.core.stats import HessianGradient, Stat, Stats, SynapticFlow, WeightGradient, WeightMovement
from sparseworks.scores.entrywise import Entrywise, fitting, like, wide


@SCORES.register("gradient")
@dataclass(frozen=True)
class Gradient(Entrywise):
    """|g_ij|, g = mean loss gradient: where an inactive weight would help most (Evci et al., 2020, arXiv 1911.11134)."""

    needs: ClassVar[frozenset[type[Stat]]] = frozenset({WeightGradient})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """|g| on the columns `at`."""
        return like(fitting(stats, WeightGradient, weight).mean[:, at], weight).abs()


@SCORES.register("snip")
@dataclass(frozen=True)
class SNIP(Entrywise):
    """|w_ij g_ij|, g = mean loss gradient: first-order change of the loss (Lee et al., 2019, arXiv 1810.02340)."""

    needs: ClassVar[frozenset[type[Stat]]] = frozenset({WeightGradient})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """|w g| on the columns `at`."""
        return (wide(weight[:, at]) * like(fitting(stats, WeightGradient, weight).mean[:, at], weight)).abs()


@SCORES.register("taylor")
@dataclass(frozen=True)
class Taylor(Entrywise):
    """E[(w_ij g_ij)^2] over batches; a unit of a pattern scores the sum over its entries.

    Source: Molchanov et al., 2019, arXiv 1906.10771, eq. 8 (the form per parameter, averaged over mini-batches).
    """

    needs: ClassVar[frozenset[type[Stat]]] = frozenset({WeightGradient})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """w^2 E[g^2] on the columns `at`."""
        square = fitting(stats, WeightGradient, weight).mean_square[:, at]
        return wide(weight[:, at]).square() * like(square, weight)


@SCORES.register("grasp")
@dataclass(frozen=True)
class GraSP(Entrywise):
    """w_ij (Hg)_ij: what keeps the gradient flow g^T g.

    The paper's S = -w * (Hg) is (half) the change of g^T g when the weight is removed, and it removes the weights of
    largest S, those that hinder the flow. Here the higher score is kept, so this score is -S; it is signed.

    Source: Wang et al., 2020, arXiv 2002.07376.
    """

    needs: ClassVar[frozenset[type[Stat]]] = frozenset({HessianGradient})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """w (Hg) on the columns `at`."""
        return wide(weight[:, at]) * like(fitting(stats, HessianGradient, weight).mean[:, at], weight)


@SCORES.register("synflow")
@dataclass(frozen=True)
class SynFlow(Entrywise):
    """|w_ij dR/dw_ij|, R = 1^T prod_l |W_l| 1: flow through the weight, free of data (Tanaka et al., 2020, arXiv 2006.05467)."""

    needs: ClassVar[frozenset[type[Stat]]] = frozenset({SynapticFlow})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """|w dR/dw| on the columns `at`."""
        return (wide(weight[:, at]) * like(fitting(stats, SynapticFlow, weight).mean[:, at], weight)).abs()


@SCORES.register("movement")
@dataclass(frozen=True)
class Movement(Entrywise):
    """mean_t(-w_t g_t) over the training steps seen: kept are weights that move away from zero; signed.

    Source: Sanh et al., 2020, arXiv 2005.07683 (there the sum over steps; the mean has the same order).
    """

    needs: ClassVar[frozenset[type[Stat]]] = frozenset({WeightMovement})

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """The accumulated movement of the columns `at`."""
        return like(fitting(stats, WeightMovement, weight).mean[:, at], weight)
