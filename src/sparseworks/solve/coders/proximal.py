"""Proximal gradient, plain and accelerated."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sparseworks.solve.certificate import certify
from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.datafit import Datafit
from sparseworks.solve.datafits import Quadratic
from sparseworks.solve.linear import LinearMap
from sparseworks.solve.penalties import L1
from sparseworks.solve.penalty import Penalty
from sparseworks.solve.rounds import State, rounds, spread


@CODERS.register("proximal_gradient")
@dataclass(frozen=True)
class ProximalGradient(Coder):
    """z <- prox(w - A* grad f(A w) / L, 1 / L), with any datafit, penalty and map.

    Accelerated, w = z + (t_k - 1) / t_(k+1) (z - z_before), and the momentum of a row starts anew when it points uphill.
    L is the datafit's curvature times ||A||^2; where the datafit has none, every row doubles its L until the step goes down
    as the quadratic bound says.

    Attributes:
        momentum: False is ISTA.
        every: iterations between two looks at the certificate.

    Source: Beck and Teboulle, 2009 (FISTA); O'Donoghue and Candes, 2012, arXiv 1204.3982 (restart).
    """

    datafit: Datafit = field(default_factory=Quadratic)
    penalty: Penalty = field(default_factory=L1)
    tolerance: float = 1e-5
    iterations: int = 2000
    momentum: bool = True
    every: int = 10

    def solve(self, dictionary: LinearMap, signals: Tensor, start: Tensor | None) -> Solution:
        """Rows leave as soon as their certificate is small enough."""
        z = signals.new_zeros(len(signals), *dictionary.domain, dtype=dictionary.dtype) if start is None else start
        z = self.penalty.prox(z.flatten(1), 0.0).reshape(z.shape)
        searched = self.datafit.curvature == float("inf")
        bound = dictionary.squared_norm() * (1.0 if searched else self.datafit.curvature) * (1 + 1e-4)
        real = signals.real if signals.is_complex() else signals
        state = {
            "z": z,
            "w": z,
            "t": real.new_ones(len(z)),
            "bound": real.new_full((len(z),), max(bound, torch.finfo(real.dtype).tiny)),
        }
        proof = partial(certify, dictionary, self.datafit, self.penalty)
        step = partial(self._step, dictionary, searched)
        return rounds(
            state, signals, step, proof, iterations=self.iterations, every=self.every, tolerance=self.tolerance
        )

    def _step(self, a: LinearMap, searched: bool, state: State, y: Tensor) -> State:
        z, w, t, bound = state["z"], state["w"], state["t"], state["bound"]
        u = a.forward(w)
        slope = a.adjoint(self.datafit.gradient(u.flatten(1), y.flatten(1)).reshape(u.shape))
        new = self._move(w, slope, bound)
        if searched:
            new, bound = self._search(a, w, u, y, slope, new, bound)
        uphill = ((w - new) * (new - z).conj()).flatten(1).real.sum(1) > 0
        t = torch.where(uphill, 1.0, t)
        following = (1 + (1 + 4 * t.square()).sqrt()) / 2
        ahead = spread(torch.where(uphill, 0.0, (t - 1) / following), z) if self.momentum else 0.0
        return {"z": new, "w": new + ahead * (new - z), "t": following, "bound": bound}

    def _move(self, w: Tensor, slope: Tensor, bound: Tensor) -> Tensor:
        ahead = (w - slope / spread(bound, w)).flatten(1)
        return self.penalty.prox(ahead, (1 / bound).unsqueeze(1)).reshape(w.shape)

    def _search(
        self, a: LinearMap, w: Tensor, u: Tensor, y: Tensor, slope: Tensor, new: Tensor, bound: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows whose step went down less than the bound says take a shorter one; all begin the next a little longer."""
        before = self.datafit.value(u.flatten(1), y.flatten(1))
        for _ in range(60):
            d = (new - w).flatten(1)
            after = self.datafit.value(a.forward(new).flatten(1), y.flatten(1))
            allowed = before + (slope.flatten(1) * d).sum(1) + bound / 2 * d.square().sum(1)
            short = ~(after <= allowed + 4 * torch.finfo(d.dtype).eps * before.abs())
            if not bool(short.any()):
                break
            bound = torch.where(short, bound * 2, bound)
            new = torch.where(spread(short, new), self._move(w, slope, bound), new)
        return new, bound * 0.95
