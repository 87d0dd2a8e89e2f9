"""Squared error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.datafit import DATAFITS, Datafit


@DATAFITS.register("quadratic")
@dataclass(frozen=True)
class Quadratic(Datafit):
    """||u - y||^2 / 2; complex u and y are taken as real vectors of twice the length."""

    curvature = 1.0

    def value(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """||u - y||^2 / 2."""
        return (u - y).abs().square().sum(-1) / 2

    def gradient(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """u - y."""
        return u - y

    def bend(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """1."""
        del y
        return torch.ones_like(u)

    def conjugate(self, v: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """||v||^2 / 2 + <v, y>."""
        return (v.abs().square() / 2 + (v * y.conj()).real).sum(-1)

    def prox(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"], step: float) -> Float[Tensor, "*rows m"]:
        """(u + step y) / (1 + step)."""
        return (u + step * y) / (1 + step)
