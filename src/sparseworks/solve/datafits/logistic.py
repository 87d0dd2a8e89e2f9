"""The logistic loss of labels +1 and -1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.datafit import DATAFITS, Datafit


@DATAFITS.register("logistic")
@dataclass(frozen=True)
class Logistic(Datafit):
    """sum_i log(1 + exp(-y_i u_i)), y_i in {-1, 1}."""

    curvature = 0.25

    def refuses(self, y: Float[Tensor, "*rows m"]) -> str | None:
        """Anything but -1 and 1."""
        return None if bool((y.abs() == 1).all()) else "The logistic loss is of labels -1 and 1; these are others."

    def value(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """sum log(1 + exp(-y u))."""
        return torch.nn.functional.softplus(-y * u).sum(-1)

    def gradient(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """-y / (1 + exp(y u))."""
        return -y * torch.sigmoid(-y * u)

    def bend(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """p (1 - p) with p = 1 / (1 + exp(-u))."""
        p = torch.sigmoid(u)
        return p * (1 - p)

    def conjugate(self, v: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """sum t log t + (1 - t) log(1 - t) with t = -y v in [0, 1]."""
        t = -y * v
        inside = torch.special.xlogy(t.clamp(min=0), t.clamp(min=0))
        inside = inside + torch.special.xlogy((1 - t).clamp(min=0), (1 - t).clamp(min=0))
        return inside.sum(-1).masked_fill(((t < 0) | (t > 1)).any(-1), torch.inf)

    def prox(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"], step: float) -> Float[Tensor, "*rows m"]:
        """Newton's steps on v - u + step * gradient(v) = 0, kept between u and u + step * y, where the root is."""
        low, high = torch.minimum(u, u + step * y), torch.maximum(u, u + step * y)
        v = (low + high) / 2
        for _ in range(_ROUNDS):
            slope = v - u + step * self.gradient(v, y)
            low, high = torch.where(slope < 0, v, low), torch.where(slope < 0, high, v)
            v = v - slope / (1 + step * self.bend(v, y))
            v = torch.where((v < low) | (v > high), (low + high) / 2, v)
        return v


_ROUNDS = 20
