"""Four-bit weights: whole numbers 0 to 15 with a scale and a zero point per group of inputs."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sparseworks.core.errors import KernelError

GROUP = 16
MOST = 15
UINT4: torch.dtype = torch.uint4  # type: ignore[attr-defined] - it is there, the stubs do not know it


def to_int4(
    groups: Float[Tensor, "groups width"], most: int = MOST
) -> tuple[UInt8[Tensor, "groups width"], Float[Tensor, " groups"], UInt8[Tensor, " groups"]]:
    """`(code, scale, zero)`: code = round(w / scale) + zero in 0..most; scale = (max - min) / most in float16, 0 stays exact.

    A group of one sign reaches to 0, so that the zero point is one of the codes; a group of zeros has scale 0.

    Raises:
        KernelError: a weight is NaN, infinite, or too large for a float16 scale.
    """
    w = groups.float()
    low, high = w.amin(dim=1).clamp(max=0), w.amax(dim=1).clamp(min=0)
    scale = ((high - low) / most).half()
    if not bool(torch.isfinite(scale).all()):
        raise KernelError("The kept weights hold NaN or infinities, or are too large for a scale in float16.")
    step = scale.float()
    safe = torch.where(step > 0, step, 1.0)
    zero = (-low / safe).round().clamp(0, most)
    code = ((w / safe[:, None]).round() + zero[:, None]).clamp(0, most)
    empty = step == 0
    code, zero = code.masked_fill(empty[:, None], 0), zero.masked_fill(empty, 0)
    return code.to(torch.uint8), scale, zero.to(torch.uint8)


def from_int4(
    code: UInt8[Tensor, "groups width"], scale: Float[Tensor, " groups"], zero: UInt8[Tensor, " groups"]
) -> Float[Tensor, "groups width"]:
    """w = scale * (code - zero), in float32."""
    return scale.float()[:, None] * (code.float() - zero.float()[:, None])


def pairs(code: UInt8[Tensor, "groups width"]) -> UInt8[Tensor, "groups half"]:
    """Two codes a byte, the even one in the low half."""
    return code[:, ::2] | (code[:, 1::2] << 4)


def unpaired(packed: UInt8[Tensor, "groups half"]) -> UInt8[Tensor, "groups width"]:
    """Inverse of `pairs`."""
    return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)
