"""Survival times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.datafit import DATAFITS, Datafit


@DATAFITS.register("cox")
@dataclass(frozen=True)
class Cox(Datafit):
    """-sum over events i of [u_i - log sum_(j: t_j >= t_i) exp(u_j)]; y_i = t_i of an event, -t_i where the time is censored.

    Ties by Breslow. The partial likelihood of proportional hazards, with risk u.

    Source: Cox, 1972; Breslow, 1974.
    """

    curvature = torch.inf

    def value(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """-sum over events of u_i - log(risk of those still there)."""
        event = y > 0
        return torch.where(event, self._log_risk(u, y) - u, 0).sum(-1)

    def gradient(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """exp(u_j) * sum over events i with t_i <= t_j of 1 / risk_i, less 1 at events."""
        event, risk = y > 0, self._log_risk(u, y)
        reached = y.abs().unsqueeze(-1) >= y.abs().unsqueeze(-2)  # (j, i): j is still there at t_i
        share = torch.where(reached & event.unsqueeze(-2), (u.unsqueeze(-1) - risk.unsqueeze(-2)).exp(), 0)
        return share.sum(-1) - event.to(u.dtype)

    def _log_risk(self, u: Tensor, y: Tensor) -> Tensor:
        there = y.abs().unsqueeze(-2) >= y.abs().unsqueeze(-1)  # (i, j)
        return torch.where(there, u.unsqueeze(-2), -torch.inf).logsumexp(-1)
