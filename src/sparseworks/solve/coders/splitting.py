"""Splitting: ADMM in graph form, and the primal-dual method of Chambolle, Pock and Condat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sparseworks.solve.certificate import certify
from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.datafit import Datafit
from sparseworks.solve.datafits import Quadratic
from sparseworks.solve.linear import LinearMap
from sparseworks.solve.maps import Atoms
from sparseworks.solve.penalties import L1
from sparseworks.solve.penalty import Penalty
from sparseworks.solve.rounds import State, rounds


@CODERS.register("admm")
@dataclass(frozen=True)
class GraphADMM(Coder):
    """(x, A x) projected on the graph of A, u = prox of f, z = prox of g, and scaled duals.

    One factor of I + A A* or I + A* A serves every penalty parameter (conjugate gradients where the map is not a matrix),
    so that `rho` may be any. The step is relaxed by 1.6.

    Attributes:
        rho: price of the constraints, in units of the datafit's curvature times ||A||^2 beside the codes'.

    Source: Boyd, Parikh, Chu, Peleato and Eckstein, 2011; Parikh and Boyd, 2014 (graph form).
    """

    datafit: Datafit = field(default_factory=Quadratic)
    penalty: Penalty = field(default_factory=L1)
    tolerance: float = 1e-5
    iterations: int = 5000
    rho: float = 1.0
    every: int = 10

    def solve(self, dictionary: LinearMap, signals: Tensor, start: Tensor | None) -> Solution:
        """Every row on its own; all share the factor."""
        # With A scaled to norm 1 the graph is as steep in codes as in signals.
        norm = max(dictionary.squared_norm(), torch.finfo(torch.float32).tiny) ** 0.5
        z = signals.new_zeros(len(signals), *dictionary.domain, dtype=dictionary.dtype) if start is None else start
        u = dictionary.forward(z) / norm
        state = {"z": z, "u": u, "dz": torch.zeros_like(z), "du": torch.zeros_like(u)}
        step = partial(self._step, dictionary, norm, graph_projection(dictionary, norm))
        proof = partial(certify, dictionary, self.datafit, self.penalty)
        return rounds(
            state, signals, step, proof, iterations=self.iterations, every=self.every, tolerance=self.tolerance
        )

    def _step(
        self, a: LinearMap, norm: float, project: Callable[[Tensor, Tensor], Tensor], state: State, y: Tensor
    ) -> State:
        z, u, dz, du = state["z"], state["u"], state["dz"], state["du"]
        x = project(z - dz, u - du)
        ax = a.forward(x) / norm
        x, ax = 1.6 * x - 0.6 * z, 1.6 * ax - 0.6 * u
        price = self.rho * norm**2
        z = self.penalty.prox((x + dz).flatten(1), 1 / price).reshape(z.shape)
        # u stands for A x / norm: f(norm u) with price per u^2 is f(v) with price / norm^2 per v^2.
        u = self.datafit.prox((norm * (ax + du)).flatten(1), y.flatten(1), 1 / self.rho).reshape(u.shape) / norm
        return {"z": z, "u": u, "dz": dz + x - z, "du": du + ax - u}


def graph_projection(a: LinearMap, norm: float) -> Callable[[Tensor, Tensor], Tensor]:
    """(c, d) -> x that minimises ||x - c||^2 + ||A x / norm - d||^2: x = (I + A* A / norm^2)^-1 (c + A* d / norm)."""
    if not isinstance(a, Atoms):
        return partial(_by_conjugate_gradients, a, norm)
    matrix = a.matrix / norm
    wide = len(matrix) > matrix.shape[1]
    small = matrix.mH @ matrix if wide else matrix @ matrix.mH
    factor = torch.linalg.cholesky(small + torch.eye(len(small), dtype=small.dtype, device=small.device))

    def project(c: Tensor, d: Tensor) -> Tensor:
        right = c + d @ matrix.mH
        if not wide:
            return torch.cholesky_solve(right.mH, factor).mH
        return right - torch.cholesky_solve((right @ matrix).mH, factor).mH @ matrix.mH

    return project


def _by_conjugate_gradients(a: LinearMap, norm: float, c: Tensor, d: Tensor) -> Tensor:
    inner = lambda p, q: (p * q.conj()).flatten(1).real.sum(1).reshape(-1, *(1,) * (p.dim() - 1))  # noqa: E731
    x = c
    residual = c + a.adjoint(d) / norm - (x + a.normal(x) / norm**2)
    direction, energy = residual, inner(residual, residual)
    least = energy * torch.finfo(energy.dtype).eps ** 2
    for _ in range(100):  # the condition is 2 at most
        if not bool((energy > least).any()):
            break
        moved = direction + a.normal(direction) / norm**2
        length = energy / inner(direction, moved).clamp(min=torch.finfo(energy.dtype).tiny)
        x, residual = x + length * direction, residual - length * moved
        energy, before = inner(residual, residual), energy
        direction = residual + energy / before.clamp(min=torch.finfo(energy.dtype).tiny) * direction
    return x


@CODERS.register("primal_dual")
@dataclass(frozen=True)
class PrimalDual(Coder):
    """z <- prox of g (z - tau A* v), v <- prox of f* (v + sigma A (2 z - z_before)): no linear system, no gradient of f.

    Attributes:
        ratio: tau over sigma, as a factor on 1; tau * sigma * ||A||^2 < 1 is kept.

    Source: Chambolle and Pock, 2011; Condat, 2013.
    """

    datafit: Datafit = field(default_factory=Quadratic)
    penalty: Penalty = field(default_factory=L1)
    tolerance: float = 1e-5
    iterations: int = 5000
    ratio: float = 1.0
    every: int = 20

    def solve(self, dictionary: LinearMap, signals: Tensor, start: Tensor | None) -> Solution:
        """Every row on its own."""
        z = signals.new_zeros(len(signals), *dictionary.domain, dtype=dictionary.dtype) if start is None else start
        u = dictionary.forward(z)
        dual = self.datafit.gradient(u.flatten(1), signals.flatten(1)).reshape(u.shape)
        norm = max(dictionary.squared_norm() * (1 + 1e-3), torch.finfo(torch.float32).tiny) ** 0.5
        tau, sigma = self.ratio**0.5 / norm, self.ratio**-0.5 / norm
        step = partial(self._step, dictionary, tau, sigma)
        proof = partial(certify, dictionary, self.datafit, self.penalty)
        return rounds(
            {"z": z, "v": dual},
            signals,
            step,
            proof,
            iterations=self.iterations,
            every=self.every,
            tolerance=self.tolerance,
        )

    def _step(self, a: LinearMap, tau: float, sigma: float, state: State, y: Tensor) -> State:
        z, v = state["z"], state["v"]
        new = self.penalty.prox((z - tau * a.adjoint(v)).flatten(1), tau).reshape(z.shape)
        ahead = v + sigma * a.forward(2 * new - z)
        inner = self.datafit.prox((ahead / sigma).flatten(1), y.flatten(1), 1 / sigma).reshape(v.shape)
        return {"z": new, "v": ahead - sigma * inner}
