"""Are the numbers of a tensor such that one can compute with them: finite, asked of whole weights without a second tensor of their size; floating."""

from __future__ import annotations

from math import isfinite

import torch
from jaxtyping import Shaped
from torch import Tensor

from sparseworks.core.errors import DtypeError


def all_finite(x: Shaped[Tensor, "*shape"]) -> bool:
    """Whether `x` holds neither NaN nor infinity: its least and its greatest number are finite, and NaN would be both."""
    if not x.numel() or not (x.is_floating_point() or x.is_complex()):
        return True
    if x.is_complex():
        return bool(torch.isfinite(x).all())
    low, high = torch.aminmax((x if x.element_size() > 1 else x.float()).detach())
    return isfinite(float(low)) and isfinite(float(high))


def require_floating(what: str, *given: Shaped[Tensor, "*shape"]) -> None:
    """Check that tensors are all float32 or all float64.

    Raises:
        DtypeError: integers, half precision, complex numbers, or two types.
    """
    kinds = {x.dtype for x in given}
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        raise DtypeError(f"{what} must be float32 or float64, all alike, got {', '.join(sorted(map(str, kinds)))}.")
