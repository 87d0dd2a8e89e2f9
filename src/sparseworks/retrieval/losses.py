"""Ranking losses on a batch's scores: contrastive, margins of a teacher, and the distribution of one or several teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.config import NOUNS
from sparseworks.core.errors import BudgetError, CalibrationError, NonFiniteError, ShapeError
from sparseworks.core.registry import Registry

RANKING_LOSSES: Registry[type[RankingLoss]] = Registry("ranking loss", "sparseworks.retrieval")


class RankingLoss:
    """`loss(scores, positive, teacher)`: scores (queries, documents) of all pairs of a batch, the column of each query's own document.

    Attributes:
        needs_teacher: whether teacher scores of the same shape must be given.
    """

    needs_teacher: ClassVar[bool] = False

    def __call__(
        self,
        scores: Float[Tensor, "queries documents"],
        positive: Int[Tensor, " queries"],
        teacher: Float[Tensor, "queries documents"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean over queries."""
        raise NotImplementedError


@RANKING_LOSSES.register("info_nce")
@dataclass(frozen=True)
class InfoNCE(RankingLoss):
    """-log softmax(s / temperature) at the positive; all other documents of the batch are negatives (arXiv 1807.03748).

    Raises:
        BudgetError: a temperature that is not above 0.
    """

    temperature: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise BudgetError(f"A temperature is a number > 0, got {self.temperature!r}.")

    def __call__(self, scores: Tensor, positive: Tensor, teacher: Tensor | None = None) -> Tensor:
        """As in the formula."""
        return F.cross_entropy(scores / self.temperature, positive)


@RANKING_LOSSES.register("margin_mse")
@dataclass(frozen=True)
class MarginMSE(RankingLoss):
    """mean ((s_+ - s_-) - (t_+ - t_-))^2 over all negatives of the batch (Hofstaetter et al., 2020, arXiv 2010.02666)."""

    needs_teacher: ClassVar[bool] = True

    def __call__(self, scores: Tensor, positive: Tensor, teacher: Tensor | None = None) -> Tensor:
        """As in the formula."""
        t = _taught(scores, teacher)
        at = positive.unsqueeze(1)
        wrong = (scores.gather(1, at) - scores) - (t.gather(1, at) - t)
        return wrong.square().sum() / max(scores.numel() - len(scores), 1)


@RANKING_LOSSES.register("distill_kl")
@dataclass(frozen=True)
class DistillKL(RankingLoss):
    """KL(softmax(t) || softmax(s)) over the documents of the batch; t as `ensemble` makes it (arXiv 2411.04403)."""

    needs_teacher: ClassVar[bool] = True

    def __call__(self, scores: Tensor, positive: Tensor, teacher: Tensor | None = None) -> Tensor:
        """As in the formula."""
        t = _taught(scores, teacher)
        return F.kl_div(scores.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)


def ensemble(
    teachers: Sequence[Float[Tensor, "queries documents"]], weights: Sequence[float] | None = None, scale: float = 30.0
) -> Float[Tensor, "queries documents"]:
    """scale * sum_m weight_m (t_m - min t_m) / (max t_m - min t_m), least and largest of each query; equal weights by default.

    Raises:
        CalibrationError: no teachers, or another number of weights.
        NonFiniteError: NaN or infinity in a teacher's scores.

    Source: Geng et al., 2024 (arXiv 2411.04403).
    """
    shares = [1 / max(len(teachers), 1)] * len(teachers) if weights is None else list(weights)
    if not teachers or len(shares) != len(teachers):
        raise CalibrationError(f"{len(teachers)} teachers and {len(shares)} weights: give at least one, and as many.")
    total = torch.zeros_like(teachers[0])
    for share, t in zip(shares, teachers, strict=True):
        if not bool(torch.isfinite(t).all()):
            raise NonFiniteError("A teacher's scores hold NaN or infinity.")
        low, high = t.amin(1, keepdim=True), t.amax(1, keepdim=True)
        total = total + share * (t - low) / (high - low).clamp(min=1e-9)
    return scale * total


def _taught(scores: Tensor, teacher: Tensor | None) -> Tensor:
    if teacher is None:
        raise CalibrationError("This loss learns from a teacher: `train_retriever(..., teachers=(teacher,))`.")
    if teacher.shape != scores.shape:
        raise ShapeError(f"Scores are {tuple(scores.shape)}, the teacher's {tuple(teacher.shape)}.")
    return teacher


NOUNS["ranking_loss"] = (RankingLoss, RANKING_LOSSES)
