"""How far a classifier's confidence is from its accuracy."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import CalibrationError, ShapeError


def calibration_error(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], bins: int = 15) -> float:
    """sum over bins of (share of examples) * |accuracy - mean confidence|, equal bins of the largest probability, in [0, 1].

    Source: Guo et al., 2017, arXiv 1706.04599 (expected calibration error).

    Raises:
        ShapeError: logits and labels do not fit.
        CalibrationError: no examples.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"Logits are examples x classes beside one label each, got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if not len(labels):
        raise CalibrationError("There are no examples, so nothing can be calibrated.")
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, (predicted == labels).double() - confidence)
    return float(gap.abs().sum() / len(labels))
