"""Is every number of a tensor finite? Asked of whole weights, so it needs no second tensor of their size."""

from __future__ import annotations

from math import isfinite

import torch
from jaxtyping import Shaped
from torch import Tensor


def all_finite(x: Shaped[Tensor, "*shape"]) -> bool:
    """Whether `x` holds neither NaN nor infinity: its least and its greatest number are finite, and NaN would be both."""
    if not x.numel() or not (x.is_floating_point() or x.is_complex()):
        return True
    if x.is_complex():
        return bool(torch.isfinite(x).all())
    low, high = torch.aminmax((x if x.element_size() > 1 else x.float()).detach())
    return isfinite(float(low)) and isfinite(float(high))
