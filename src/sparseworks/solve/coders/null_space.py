"""Null-space tuning with hard thresholding and feedback."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from sparseworks.core.budget import Budget, Residual
from sparseworks.solve.coder import CODERS
from sparseworks.solve.coders.loop import ThresholdLoop
from sparseworks.solve.coders.problem import EIGHT, Problem, keep, most_atoms, needs_matrix
from sparseworks.solve.linear import LinearMap


@CODERS.register("nst_ht_fb")
@dataclass(frozen=True)
class NSTHTFB(ThresholdLoop):
    """v = z + A^+ (y - A z) with A^+ = A* (A A*)^-1; T = the largest of v; z = v_T + A_T^+ A_{not T} v_{not T}, which is A_T^+ y.

    Null-space tuning, hard thresholding, feedback: every v fits the signal, so it is hard thresholding pursuit with a preconditioned
    gradient. With `Count(s)`, T has s entries. With `Residual(share)`, T has growth * (n + 1) in round n = 0, 1, ... (at most as many as
    a signal has samples), until at most that share of the squared norm is left: no sparsity needs to be known.

    Attributes:
        budget: `Count` or `Residual`.
        growth: entries more in every round, where the budget is a `Residual`.
        feedback: False leaves the refit out: z = H_s(v).

    Raises:
        KernelError: the atoms do not span the signals.

    Source: Li, Liu and Mi, 2014; with a support that grows, Han, Li et al., 2020 (arXiv 2005.06693), whose code
    takes f(n) = 6 n atoms as an example.
    """

    budget: Budget = EIGHT
    growth: int = 1
    feedback: bool = True

    def refuses(self, dictionary: LinearMap) -> str | None:
        """Maps that are not real matrices."""
        return needs_matrix("Null-space tuning", dictionary)

    def step(
        self, problem: Problem, y: Shaped[Tensor, "rows m"], z: Shaped[Tensor, "rows n"], r: Shaped[Tensor, "rows m"]
    ) -> Shaped[Tensor, "rows n"]:
        """Onto the codes that give the signal."""
        del y
        return z + problem.least_norm(r)

    def threshold(self, problem: Problem, v: Shaped[Tensor, "rows n"], n: int) -> Shaped[Tensor, "rows n"]:
        """The s largest; s may grow."""
        limit = min(problem.codes, problem.features)
        most, _ = most_atoms(self.budget, limit)
        return keep(v, min(self.growth * (n + 1), most) if isinstance(self.budget, Residual) else most)

    def refit(
        self, problem: Problem, y: Shaped[Tensor, "rows m"], z: Shaped[Tensor, "rows n"]
    ) -> Shaped[Tensor, "rows n"]:
        """Least squares on the support, where there is feedback."""
        return problem.fit(y, z != 0) if self.feedback else z

    def enough(self, left: torch.Tensor) -> Tensor:
        """Within the tolerance, or within the budget."""
        return left <= max(self.tolerance**2, self.budget.value if isinstance(self.budget, Residual) else 0.0)
