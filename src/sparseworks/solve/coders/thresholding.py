"""Hard thresholding with a known number of entries: IHT, HTP, CoSaMP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from sparseworks.core.budget import Budget, Count
from sparseworks.core.errors import BudgetError
from sparseworks.solve.coder import CODERS
from sparseworks.solve.coders.loop import ThresholdLoop
from sparseworks.solve.coders.problem import EIGHT, Problem, keep, most_atoms, needs_matrix
from sparseworks.solve.linear import LinearMap

_SHRINK, _MARGIN = 2.0, 0.01  # kappa and c of normalised iterative hard thresholding


@dataclass(frozen=True)
class Hard(ThresholdLoop):
    """Keeps as many entries as the budget says."""

    budget: Budget = EIGHT

    def threshold(self, problem: Problem, v: Shaped[Tensor, "rows n"], n: int) -> Shaped[Tensor, "rows n"]:
        """H_s(v): the s largest in modulus."""
        return keep(v, self.size(problem))

    def size(self, problem: Problem) -> int:
        """s.

        Raises:
            BudgetError: not a `Count` that fits.
        """
        if not isinstance(self.budget, Count):
            raise BudgetError(f"{type(self).__name__} keeps a fixed number of entries: Count, not {self.budget}.")
        return most_atoms(self.budget, problem.codes)[0]


@CODERS.register("iht")
@dataclass(frozen=True)
class IHT(Hard):
    """z <- H_s(z + mu A*(y - A z)); any linear map.

    mu = ||g_T||^2 / ||A g_T||^2 on the current support T, halved while the support changes and mu exceeds (1 - c) ||dz||^2 / ||A dz||^2;
    or 1 / ||A||^2 where not `normalised`.

    Source: Blumensath and Davies, 2009 (arXiv 0805.0510); the step, 2010 (Normalized Iterative Hard Thresholding).
    """

    normalised: bool = True

    def step(
        self, problem: Problem, y: Shaped[Tensor, "rows m"], z: Shaped[Tensor, "rows n"], r: Shaped[Tensor, "rows m"]
    ) -> Shaped[Tensor, "rows n"]:
        """A gradient step of the length above."""
        g = problem.adjoint(r)
        if not self.normalised:
            return z + g / problem.squared_norm
        s = self.size(problem)
        mu = exact_step(problem, z, g, s)
        support = z != 0
        for _ in range(60):
            new = keep(z + mu * g, s)
            moved = new - z
            bound = _ratio(moved, problem.forward(moved)) * (1 - _MARGIN)
            long = (mu > bound) & ((new != 0) != support).any(1, keepdim=True)
            if not bool(long.any()):
                break
            mu = torch.where(long, mu / (_SHRINK * (1 - _MARGIN)), mu)
        return z + mu * g


@CODERS.register("htp")
@dataclass(frozen=True)
class HTP(Hard):
    """T = supp H_s(z + mu A*(y - A z)), then least squares on T; mu as in normalised IHT, without the halving.

    Source: Foucart, 2011 (Hard thresholding pursuit).
    """

    def refuses(self, dictionary: LinearMap) -> str | None:
        """Maps that are not real matrices."""
        return needs_matrix("HTP", dictionary)

    def step(
        self, problem: Problem, y: Shaped[Tensor, "rows m"], z: Shaped[Tensor, "rows n"], r: Shaped[Tensor, "rows m"]
    ) -> Shaped[Tensor, "rows n"]:
        """A gradient step."""
        g = problem.adjoint(r)
        return z + exact_step(problem, z, g, self.size(problem)) * g

    def refit(
        self, problem: Problem, y: Shaped[Tensor, "rows m"], z: Shaped[Tensor, "rows n"]
    ) -> Shaped[Tensor, "rows n"]:
        """Least squares on the support."""
        return problem.fit(y, z != 0)


@CODERS.register("cosamp")
@dataclass(frozen=True)
class CoSaMP(Hard):
    """Least squares on supp(z) and the 2 s atoms that correlate most with the residual; the s largest are kept, and fitted.

    Attributes:
        fitted: least squares on those kept, too; False is the paper's form, which goes on with them as they are.

    Source: Needell and Tropp, 2009 (arXiv 0803.2392).
    """

    fitted: bool = True

    def refuses(self, dictionary: LinearMap) -> str | None:
        """Maps that are not real matrices."""
        return needs_matrix("CoSaMP", dictionary)

    def step(
        self, problem: Problem, y: Shaped[Tensor, "rows m"], z: Shaped[Tensor, "rows n"], r: Shaped[Tensor, "rows m"]
    ) -> Shaped[Tensor, "rows n"]:
        """Least squares on the merged support, of no more atoms than a signal has samples."""
        s = self.size(problem)
        new = min(2 * s, max(problem.features - s, 0))
        merged = (keep(problem.adjoint(r), new) != 0) | (z != 0)
        return problem.fit(y, merged)

    def refit(
        self, problem: Problem, y: Shaped[Tensor, "rows m"], z: Shaped[Tensor, "rows n"]
    ) -> Shaped[Tensor, "rows n"]:
        """Least squares on those kept."""
        return problem.fit(y, z != 0) if self.fitted else z


def exact_step(problem: Problem, z: Tensor, g: Tensor, s: int) -> Tensor:
    """||g_T||^2 / ||A g_T||^2 for every row, T the support of z, or of the s largest correlations where z = 0."""
    support = (z != 0) | ((z == 0).all(1, keepdim=True) & (keep(g, s) != 0))
    on = torch.where(support, g, torch.zeros_like(g))
    return _ratio(on, problem.forward(on))


def _ratio(z: Tensor, moved: Tensor) -> Tensor:
    above, below = z.abs().square().sum(1, keepdim=True), moved.abs().square().sum(1, keepdim=True)
    return torch.where(below > 0, above / torch.where(below > 0, below, 1), 1.0)
