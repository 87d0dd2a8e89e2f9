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

    The documents of n queries stand place by place: the first of each, the second of each ...; `positive` is a column of the first place.

    Attributes:
        needs_teacher: whether teacher scores of the same shape must be given.
        in_batch: whether documents of other queries compete too, or only a query's own.
    """

    needs_teacher: ClassVar[bool] = False
    in_batch: bool = True

    def taught(self, teachers: Sequence[Float[Tensor, "queries documents"]]) -> Float[Tensor, "queries documents"]:
        """What several teachers say together: the mean of their scores as they are."""
        return torch.stack(list(teachers)).mean(0)

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
    """-log softmax(s / temperature) at the positive; the other documents of the batch are negatives (arXiv 1807.03748).

    Raises:
        BudgetError: a temperature that is not above 0.
    """

    temperature: float = 1.0
    in_batch: bool = True

    def __post_init__(self):
        if not self.temperature > 0:
            raise BudgetError(f"A temperature is a number > 0, got {self.temperature!r}.")

    def __call__(self, scores: Tensor, positive: Tensor, teacher: Tensor | None = None) -> Tensor:
        """As in the formula."""
        s, at = (scores, positive) if self.in_batch else _own(scores, positive)
        return F.cross_entropy(s / self.temperature, at)


@RANKING_LOSSES.register("margin_mse")
@dataclass(frozen=True)
class MarginMSE(RankingLoss):
    """mean ((s_+ - s_-) - (t_+ - t_-))^2 over the other documents (Hofstaetter et al., 2020, arXiv 2010.02666).

    Margins are taken over as they are: the source's teachers are cross-encoders, whose scores lie some ten apart; those of a teacher
    of cosines are best multiplied by some tens.
    """

    needs_teacher: ClassVar[bool] = True
    in_batch: bool = False

    def __call__(self, scores: Tensor, positive: Tensor, teacher: Tensor | None = None) -> Tensor:
        """As in the formula."""
        s, t, at = _both(scores, positive, teacher, self.in_batch)
        at = at.unsqueeze(1)
        wrong = (s.gather(1, at) - s) - (t.gather(1, at) - t)
        return wrong.square().sum() / max(s.numel() - len(s), 1)


@RANKING_LOSSES.register("distill_kl")
@dataclass(frozen=True)
class DistillKL(RankingLoss):
    """KL(softmax(t) || softmax(scale s)) over the documents; t as `ensemble` makes it (arXiv 2411.04403), which has no `scale`.

    `scale` is for short trainings: where s begins further apart than t, the loss falls fastest by closing terms, which then are lost.

    Raises:
        BudgetError: a scale that is not above 0.
    """

    needs_teacher: ClassVar[bool] = True
    in_batch: bool = True
    scale: float = 1.0

    def __post_init__(self):
        if not self.scale > 0:
            raise BudgetError(f"Scores are multiplied by a number > 0, got {self.scale!r}.")

    def taught(self, teachers: Sequence[Tensor]) -> Tensor:
        """`ensemble`."""
        return ensemble(teachers)

    def __call__(self, scores: Tensor, positive: Tensor, teacher: Tensor | None = None) -> Tensor:
        """As in the formula."""
        s, t, _ = _both(scores, positive, teacher, self.in_batch)
        return F.kl_div((self.scale * s).log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)


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


def _both(scores: Tensor, positive: Tensor, teacher: Tensor | None, in_batch: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, the teacher's, and the places of the positives: of all documents, or of each query's own."""
    if teacher is None:
        raise CalibrationError("This loss learns from a teacher: `train_retriever(..., teachers=(teacher,))`.")
    if teacher.shape != scores.shape:
        raise ShapeError(f"Scores are {tuple(scores.shape)}, the teacher's {tuple(teacher.shape)}.")
    if in_batch:
        return scores, teacher, positive
    s, at = _own(scores, positive)
    return s, _own(teacher, positive)[0], at


def _own(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Of each query's documents of all places, the positive first: column `positive + n place`."""
    n, documents = scores.shape
    if documents % n or documents < 2 * n:
        raise CalibrationError(
            f"{documents} documents for {n} queries: this loss compares the documents of one query with each other. Give rows "
            "(query, document, other document ...), or `in_batch=True`."
        )
    own = torch.arange(0, documents, n, device=scores.device) + positive.unsqueeze(1)
    return scores.gather(1, own), torch.zeros_like(positive)


NOUNS["ranking_loss"] = (RankingLoss, RANKING_LOSSES)
