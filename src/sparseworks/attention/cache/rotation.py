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


class Angles:
    """cos and sin of every position times the frequencies, made once for all layers and grown by doubling."""

    def __init__(self, frequency: Float[Tensor, " half"]):
        self.frequency = frequency
        self._cos = self._sin = frequency.new_empty(0, len(frequency))

    def of(self, at: Int[Tensor, "*tokens"], device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin at these positions."""
        most = int(at.max()) + 1 if at.numel() else 0
        if most > len(self._cos) or self._cos.device != device:
            with torch.inference_mode(False):
                every = torch.arange(max(most, 2 * len(self._cos)), device=device)[:, None]
                angle = every * self.frequency.detach().clone().to(device)
                self._cos, self._sin = angle.cos(), angle.sin()
        at = at.to(device)
        return self._cos[at], self._sin[at]

    def __deepcopy__(self, memo: dict[int, object]) -> Angles:
        return self


def turned(
    k: Float[Tensor, "*heads tokens d"], at: Int[Tensor, "*#heads tokens"], angles: Angles | Tensor | None, *, back: bool = False
) -> Float[Tensor, "*heads tokens d"]:  # fmt: skip
    """Keys rotated to positions `at` by frequencies (or angles of them), or `back` from there; channels (c, c + half) turn together, later channels are left alone.

    A model that pairs other channels loses nothing but the low rank: what is turned back comes out as it went in.
    (Su et al. 2021, arXiv 2104.09864)
    """
    if angles is None:
        return k
    angles = Angles(angles) if isinstance(angles, Tensor) else angles
    half = len(angles.frequency)
    cos, sin = angles.of(at, k.device)
    sin = -sin if back else sin
    a, b, rest = k[..., :half].float(), k[..., half : 2 * half].float(), k[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest.float()], -1).to(k.dtype)
