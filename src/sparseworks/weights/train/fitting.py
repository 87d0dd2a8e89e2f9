"""How well a model fits what it is trained on: where sparse training is over too early."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError
from sparseworks.stream.modes import evaluating
from sparseworks.stream.outputs import logits_of
from sparseworks.stream.tree import call

IGNORED = -100
"""Label of tokens that do not count, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class Fit:
    """Means over examples, in nats.

    Attributes:
        loss: cross-entropy of the labels.
        entropy: of the predictions, whatever the labels are; log(classes) of a model that knows nothing.
    """

    loss: float
    entropy: float


def fit_of(model: nn.Module, batches: Iterable[tuple[Any, Int[Tensor, "..."]]]) -> Fit:
    """Loss and entropy of a classifier, or of a language model over its tokens, on pairs (inputs, labels), in mode of evaluation.

    On training data both are near zero of a dense network at the end of its schedule; where a sparse one keeps them high, it
    is under-trained and gains from a longer schedule (Kuznedelev et al., 2023, arXiv 2308.02060).

    Raises:
        CalibrationError: no batches.
        ShapeError: logits and labels do not fit.
        NonFiniteError: NaN among the logits.
    """
    loss = entropy = 0.0
    count = 0
    with evaluating(model):
        for inputs, labels in batches:
            logits = logits_of(call(model, inputs))
            if logits.shape[:-1] != labels.shape:
                raise ShapeError(f"Logits of {tuple(logits.shape)} do not fit labels of {tuple(labels.shape)}.")
            counted = (labels != IGNORED).flatten().to(logits.device)
            flat, wanted = logits.flatten(0, -2)[counted].double(), labels.flatten().to(logits.device)[counted]
            shares = flat.log_softmax(dim=-1)
            loss += float(cross_entropy(flat, wanted, reduction="sum"))
            entropy -= float((shares.exp() * shares).sum())
            count += wanted.numel()
    if not count:
        raise CalibrationError("There are no examples, so no fit can be measured.")
    if loss != loss or entropy != entropy:
        raise NonFiniteError("The logits hold NaN, so they fit nothing; check the model's weights.")
    return Fit(loss / count, entropy / count)
