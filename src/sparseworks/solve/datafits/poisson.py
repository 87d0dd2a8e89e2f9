"""Counts with a logarithmic link."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.datafit import DATAFITS, Datafit


@DATAFITS.register("poisson")
@dataclass(frozen=True)
class Poisson(Datafit):
    """sum_i exp(u_i) - y_i u_i, y_i >= 0: the negative logarithm of a Poisson law with mean exp(u), constants left out."""

    curvature = torch.inf

    def refuses(self, y: Float[Tensor, "*rows m"]) -> str | None:
        """Negative counts."""
        return None if bool((y >= 0).all()) else "A Poisson law is of counts, and some of these are negative."

    def value(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """sum exp(u) - y u."""
        return (u.exp() - y * u).sum(-1)

    def gradient(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """exp(u) - y."""
        return u.exp() - y

    def bend(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """exp(u)."""
        del y
        return u.exp()

    def conjugate(self, v: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """sum (v + y) log(v + y) - (v + y), where no v + y is negative."""
        t = v + y
        inside = torch.special.xlogy(t.clamp(min=0), t.clamp(min=0)) - t
        return inside.sum(-1).masked_fill((t < 0).any(-1), torch.inf)

    def prox(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"], step: float) -> Float[Tensor, "*rows m"]:
        """v = u + step y - w with w exp(w) = step exp(u + step y): Newton's steps on w + log w, which never overflow."""
        level = u + step * y
        goal = level + torch.log(torch.as_tensor(step, dtype=u.dtype, device=u.device))
        w = torch.where(goal > 1, goal, goal.clamp(max=1).exp())
        for _ in range(_ROUNDS):
            w = (w * (1 + goal - w.log()) / (1 + w)).clamp(min=torch.finfo(u.dtype).tiny)
        return level - w


_ROUNDS = 8
