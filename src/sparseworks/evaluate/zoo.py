"""Whole populations of models beside their sparse twins: do they agree, and do good models stay good?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError
from sparseworks.stream.modes import evaluating


@dataclass(frozen=True)
class Twins:
    """A population and its twins.

    Attributes:
        accuracy, sparse_accuracy: of every model and its twin, in [0, 1].
        agreement: share of examples on which the two predict the same class.
        correlation: Pearson's, of the two accuracies over the population (NaN where one does not vary).
    """

    accuracy: tuple[float, ...]
    sparse_accuracy: tuple[float, ...]
    agreement: tuple[float, ...]
    correlation: float


def compare_twins(models: Sequence[nn.Module], twins: Sequence[nn.Module], x: Tensor, y: Int[Tensor, " n"]) -> Twins:
    """Predictions of every model and of its sparse twin on the same examples.

    Source: Honegger, Schürholt and Borth, 2023, arXiv 2304.13718.

    Raises:
        CalibrationError: populations of different sizes, or empty ones, or no examples.
    """
    if len(models) != len(twins) or not models or not len(y):
        raise CalibrationError(
            f"Every model has one twin: got {len(models)} models, {len(twins)} twins, {len(y)} labels."
        )
    before, after = [_predicted(m, x) for m in models], [_predicted(m, x) for m in twins]
    a = [float((p == y).float().mean()) for p in before]
    b = [float((p == y).float().mean()) for p in after]
    same = [float((p == q).float().mean()) for p, q in zip(before, after, strict=True)]
    varies = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return Twins(tuple(a), tuple(b), tuple(same), float(np.corrcoef(a, b)[0, 1]) if varies else float("nan"))


def _predicted(model: nn.Module, x: Tensor) -> Int[Tensor, " n"]:
    with evaluating(model), torch.no_grad():
        return model(x).argmax(dim=1)
