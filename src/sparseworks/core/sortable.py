"""Scores of any real type as values, or as integers, that torch can put in order."""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from sparseworks.core.errors import DtypeError

_WIDER = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64}


def sortable(scores: Shaped[Tensor, "*_"]) -> Shaped[Tensor, "*_"]:
    """The same values in a type that torch can sort.

    Raises:
        DtypeError: scores that have no order (complex), or 64 bits without a sign.
    """
    if scores.is_complex() or scores.dtype == torch.uint64:
        raise DtypeError(
            f"Scores must be real numbers that torch can order, got {scores.dtype}; use e.g. scores.abs()."
        )
    if scores.is_floating_point() and scores.element_size() == 1:
        return scores.float()
    return scores.to(_WIDER.get(scores.dtype, scores.dtype))


def sortable_key(scores: Shaped[Tensor, "*_"], width: int) -> Int[Tensor, "*_"]:
    """Integers in the order of the scores: IEEE bits with the sign folded, so that int comparison is float comparison."""
    x = scores.to(torch.float64 if width == 64 else torch.float32) + 0.0  # + 0.0 makes -0.0 equal to 0.0
    bits = x.contiguous().view(torch.int64 if width == 64 else torch.int32)
    low = torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, bits ^ low, bits)
