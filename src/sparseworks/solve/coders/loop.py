"""Iterative thresholding: one loop, and three things that may be plugged into it: the step, the threshold, the refit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sparseworks.solve.coder import Coder, Solution
from sparseworks.solve.coders.problem import Problem, rounding, share_left, solution
from sparseworks.solve.linear import LinearMap


@dataclass(frozen=True)
class ThresholdLoop(Coder):
    """v = step(z), w = threshold(v), z = refit(w), until z hardly changes or nothing of the signal is left.

    The certificate is ||z_new - z|| / ||z_new|| of the last round, or 0 where the residual fell to the tolerance.

    Attributes:
        rounds: never more than this.
        tolerance: relative change at which a signal is done, and relative residual that counts as none.
    """

    rounds: int = 500
    tolerance: float = 1e-6

    def step(
        self, problem: Problem, y: Shaped[Tensor, "rows m"], z: Shaped[Tensor, "rows n"], r: Shaped[Tensor, "rows m"]
    ) -> Shaped[Tensor, "rows n"]:
        """The point to threshold, from the codes and their residual r = y - A z."""
        raise NotImplementedError

    def threshold(self, problem: Problem, v: Shaped[Tensor, "rows n"], n: int) -> Shaped[Tensor, "rows n"]:
        """v with entries set to 0, in round n = 0, 1, ..."""
        raise NotImplementedError

    def refit(
        self, problem: Problem, y: Shaped[Tensor, "rows m"], z: Shaped[Tensor, "rows n"]
    ) -> Shaped[Tensor, "rows n"]:
        """Other values on the same support; the same unless a subclass says otherwise."""
        del problem, y
        return z

    def enough(self, left: Float[Tensor, " rows"]) -> Tensor:
        """Which signals are met, given the share of the squared norm that is left."""
        return left <= self.tolerance**2

    def solve(self, dictionary: LinearMap, signals: Float[Tensor, "rows m"], start: Tensor | None) -> Solution:
        """Signals that are done leave the loop."""
        problem, y = Problem(dictionary), signals.flatten(1)
        z = problem.adjoint(torch.zeros_like(y)) if start is None else start.flatten(1).clone()
        steps = torch.zeros(len(y), dtype=torch.long, device=y.device)
        change = torch.full((len(y),), torch.inf, dtype=y.dtype, device=y.device)
        tolerance = max(self.tolerance, rounding(y.dtype))
        on = torch.arange(len(y), device=y.device)
        now, seen = z, y
        r = seen - problem.forward(now)
        for n in range(self.rounds):
            met = self.enough(share_left(r, seen))
            change[on[met]] = 0
            still = ~met & (change[on] > tolerance)
            if not bool(still.all()):
                on, now, seen, r = on[still], now[still], seen[still], r[still]
            if not len(on):
                break
            new = self.refit(problem, seen, self.threshold(problem, self.step(problem, seen, now, r), n))
            change[on] = (_size(new - now) / _size(new).clamp(min=1e-30)).to(change.dtype)
            now, r = new, seen - problem.forward(new)
            z[on], steps[on] = new, n + 1
        change[on[self.enough(share_left(r, seen))]] = 0
        return solution(problem, z, steps, change, tolerance, "change")


def _size(z: Shaped[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    """||z||, in float64: squares of large single-precision numbers overflow."""
    return torch.linalg.vector_norm(z.abs().double(), dim=1)
