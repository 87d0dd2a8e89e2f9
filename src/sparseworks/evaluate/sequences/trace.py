"""A trace of attention calls that drift, as over denoising or decoding steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.evaluate.sequences.qkv import QKV

Drift = float | Callable[[int], float]
"""Share of new noise in a step, the same in every step or as a function of the step (1 is the first that changes anything)."""


_STREAM = 0x5EED_D21F
"""Keeps the noise apart from what `qkv` draws under the same seed."""


def drift(start: QKV, steps: int, eps: Drift = 0.2, *, seed: int = 0) -> Iterator[QKV]:
    """`steps` calls: x_0 = start, x_t = sqrt(1 - eps_t^2) x_{t-1} + eps_t s noise for q, k and v, s the deviation of each of x_0.

    The norm stays, and with a constant eps x_t and x_0 correlate as (1 - eps^2)^(t/2). `eps` may fall: `falling(0.5, 0.05, 50)`.
    The noise is white, so smoothness along the tokens fades; for a drift that keeps it, see `blend`.

    Raises:
        BudgetError: an eps outside [0, 1].
    """
    g = torch.Generator().manual_seed(seed ^ _STREAM)
    sizes = [t.std() for t in start]
    now = start
    for step in range(steps):
        if step:
            share = _share(eps, step)
            fresh = [size * torch.randn(t.shape, generator=g) for t, size in zip(now, sizes, strict=True)]
            now = _mixed(now, fresh, share)
        yield now


def blend(make: Callable[[int], QKV], steps: int, eps: Drift = 0.2) -> Iterator[QKV]:
    """As `drift`, with `make(step)` in place of the noise: x_t = sqrt(1 - eps_t^2) x_{t-1} + eps_t make(t).

    With `lambda t: qkv(..., seed=t)` every step keeps the correlation along the tokens that its parts have. A `make` with
    planted columns or clusters does not keep those of the first.
    """
    now = make(0)
    for step in range(steps):
        if step:
            now = _mixed(now, list(make(step)), _share(eps, step))
        yield now


def falling(first: float, last: float, steps: int) -> Callable[[int], float]:
    """eps going down geometrically from `first` at step 1 to `last` at step `steps` - 1."""
    return lambda step: first * (last / first) ** ((step - 1) / max(steps - 2, 1))


def _share(eps: Drift, step: int) -> float:
    share = eps(step) if callable(eps) else eps
    if not 0 <= share <= 1:
        raise BudgetError(f"The share of noise lies in [0, 1], got {share} at step {step}.")
    return share


def _mixed(now: QKV, fresh: list[Tensor], share: float) -> QKV:
    keep = math.sqrt(1 - share * share)
    q, k, v = (keep * t + share * f for t, f in zip(now, fresh, strict=True))
    return QKV(q, k, v, now.labels, now.channels, now.columns)
