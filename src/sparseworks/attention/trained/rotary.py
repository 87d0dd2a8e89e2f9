"""Rotary embedding of tokens that keep their places when they are taken out of the sequence."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotate(
    x: Float[Tensor, "*some tokens d"], positions: Int[Tensor, "*some tokens"], *, base: float = 10000.0
) -> Float[Tensor, "*some tokens d"]:
    """Channels c and c + d/2 turned by position * base^(-2c / d) (Su et al. 2021, arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions.unsqueeze(-1).to(torch.float32) * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
