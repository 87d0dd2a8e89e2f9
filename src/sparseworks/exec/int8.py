"""Eight-bit weights: whole numbers with a scale per output row, symmetric, rounded to the nearest."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from sparseworks.core.errors import KernelError

MOST = 127


def to_int8(weight: Float[Tensor, "out in"]) -> tuple[Int8[Tensor, "out in"], Float[Tensor, " out"]]:
    """`(value, scale)` with value_ij = round(w_ij / scale_i), scale_i = max_j |w_ij| / 127; a row of zeros has scale 0.

    Raises:
        KernelError: a weight is NaN or infinite.
    """
    wide = weight.float()
    if not bool(torch.isfinite(wide).all()):
        raise KernelError("The kept weights hold NaN or infinities, which int8 cannot store; mend them first.")
    most = wide.abs().amax(dim=1) if wide.numel() else wide.new_zeros(wide.shape[0])
    scale = most / MOST
    value = torch.where(scale[:, None] > 0, wide / scale[:, None], 0.0).round().clamp(-MOST, MOST)
    return value.to(torch.int8), scale


def from_int8(value: Int8[Tensor, "out in"], scale: Float[Tensor, " out"]) -> Float[Tensor, "out in"]:
    """w_ij = value_ij * scale_i, in float32."""
    return value.float() * scale[:, None]
