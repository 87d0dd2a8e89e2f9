"""Rotary embedding taken off keys and put on again."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def frequencies(model: nn.Module) -> Float[Tensor, " half"] | None:
    """The rotation of each pair of channels in radians per position, as the model's rotary embedding has it; None without one."""
    for module in model.modules():
        found = getattr(module, "inv_freq", None)
        if isinstance(found, Tensor):
            return found.detach().float()
    return None


def turned(
    k: Float[Tensor, "*heads tokens d"], at: Int[Tensor, " tokens"], frequency: Float[Tensor, " half"] | None, *, back: bool = False
) -> Float[Tensor, "*heads tokens d"]:  # fmt: skip
    """Keys rotated to positions `at`, or `back` from there; channels (c, c + half) turn together, later channels are left alone.

    A model that pairs other channels loses nothing but the low rank: what is turned back comes out as it went in.
    (Su et al. 2021, arXiv 2104.09864)
    """
    if frequency is None:
        return k
    half = len(frequency)
    angle = at.to(k.device)[:, None] * frequency.to(k.device)
    cos, sin = angle.cos(), (-angle if back else angle).sin()
    a, b, rest = k[..., :half].float(), k[..., half : 2 * half].float(), k[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest.float()], -1).to(k.dtype)
