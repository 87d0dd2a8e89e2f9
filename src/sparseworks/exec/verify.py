"""Verify: a planned model beside the model it came from, on one batch: same answers, and not slower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparseworks.core.errors import ModelError
from sparseworks.exec import measure
from sparseworks.stream.tree import call, first_tensor


@dataclass(frozen=True)
class Check:
    """What `verify` saw.

    Attributes:
        error: largest absolute difference of the outputs, over the largest absolute output.
        speed: how many times faster the planned model is.
    """

    error: float
    speed: measure.Ratio

    def __str__(self) -> str:
        return f"{self.speed}, outputs differ by {self.error:.1e} of their largest value"


def verify(dense: nn.Module, planned: nn.Module, batch: Any, *, rounds: int = 9) -> Check:
    """Run both models on `batch` (tensor, tuple, or dict of keyword arguments), interleaved, and compare outputs and time.

    Give the masked dense model (weights outside the supports zero) as `dense`: the packed one equals it up to rounding. The first floating tensor of the output is compared.

    Raises:
        ModelError: the output holds no floating tensor.
    """
    with torch.inference_mode():
        expected, got = first_tensor(call(dense, batch)), first_tensor(call(planned, batch))
        if expected is None or got is None:
            raise ModelError("Neither tensor nor container of tensors came out of the model; nothing can be compared.")
        timing = measure.compare(
            {"dense": lambda: call(dense, batch), "planned": lambda: call(planned, batch)},
            rounds=rounds,
            device=expected.device.type,
        )
    largest, apart = float(expected.abs().max()), float((expected.float() - got.float()).abs().max())
    return Check(apart / largest if largest else apart, timing.ratio("dense", "planned"))
