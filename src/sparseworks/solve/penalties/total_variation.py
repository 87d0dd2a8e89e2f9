"""Jumps between neighbours."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Penalty, Step


@PENALTIES.register("tv1d")
@dataclass(frozen=True)
class TV1D(Penalty):
    """weight * sum_i |z_(i+1) - z_i|: codes that are constant in pieces."""

    separable = False

    weight: float = 1.0

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * sum |z_(i+1) - z_i|."""
        return self.weight * z.diff(dim=-1).abs().sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """Exact, by dynamic programming; every row on its own, on the CPU, without a gradient."""
        rows = z.detach().double().reshape(-1, z.shape[-1])
        steps = torch.as_tensor(step, dtype=torch.float64).cpu().expand(*z.shape[:-1], 1).reshape(-1).tolist()
        found = [_fused(row, s * self.weight) for row, s in zip(rows.tolist(), steps, strict=True)]
        return torch.tensor(found, dtype=z.dtype, device=z.device).reshape(z.shape)

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_i |sum_(j <= i) gradient_j| / weight; infinite where the gradient does not sum to 0, as constants are free."""
        sums = gradient.cumsum(-1)
        off = sums[..., -1].abs() > 1e-4 * gradient.abs().sum(-1)
        return (sums.abs().amax(-1) / self.weight).masked_fill(off, torch.inf)


def _fused(y: list[float], width: float) -> list[float]:
    """Dynamic programming over the derivative of the cost so far, which is piecewise linear and rises.

    Every sample adds b - y_i to it and the jump to the next clips it to [-width, width]; where it is clipped, bounds the
    sample by its neighbour.

    Source: Johnson, 2013 (A dynamic programming algorithm for the fused lasso and L0-segmentation).
    """
    knots: deque[tuple[float, float, float]] = deque()  # (position, change of slope, change of intercept)
    (left, left_at), (right, right_at) = (0.0, 0.0), (0.0, 0.0)
    bounds: list[tuple[float, float]] = []
    for value in y[:-1]:
        left, left_at, right, right_at = left + 1, left_at - value, right + 1, right_at - value
        while knots and left * knots[0][0] + left_at < -width:
            _, slope, at = knots.popleft()
            left, left_at = left + slope, left_at + at
        while knots and right * knots[-1][0] + right_at > width:
            _, slope, at = knots.pop()
            right, right_at = right - slope, right_at - at
        low, high = (-width - left_at) / left, (width - right_at) / right
        knots.appendleft((low, left, left_at + width))
        knots.append((high, -right, width - right_at))
        bounds.append((low, high))
        (left, left_at), (right, right_at) = (0.0, -width), (0.0, width)
    left, left_at = left + 1, left_at - y[-1]
    while knots and left * knots[0][0] + left_at < 0:
        _, slope, at = knots.popleft()
        left, left_at = left + slope, left_at + at
    found = [-left_at / left]
    for low, high in reversed(bounds):
        found.append(min(max(found[-1], low), high))
    return found[::-1]
