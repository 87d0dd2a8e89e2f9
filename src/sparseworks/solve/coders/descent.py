"""Coordinate descent, batched."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.solve.certificate import certify
from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.datafit import Datafit
from sparseworks.solve.datafits import Quadratic
from sparseworks.solve.inner_products import descend_quadratic
from sparseworks.solve.linear import LinearMap
from sparseworks.solve.maps import Atoms
from sparseworks.solve.penalties import L1
from sparseworks.solve.penalty import Penalty
from sparseworks.solve.working_set import solve_one


@dataclass(frozen=True)
class Screened(Solution):
    """A solution, and how many atoms of each row a bound has proven to be 0.

    Attributes:
        screened: int64 (rows,).
    """

    screened: Int[Tensor, " rows"]


@CODERS.register("coordinate_descent")
@dataclass(frozen=True)
class CoordinateDescent(Coder):
    """z_j <- prox of g_j (z_j - grad_j / L_j, 1 / L_j), one coordinate after the other, for penalties that are separable.

    Many rows share the inner products of the dictionary, each with a working set of its own, and once the signs of a row
    stay a Newton step on its support ends it. Few rows with a large dictionary, and datafits that are not quadratic, go
    through `solve_one`: working sets, gap-safe screening, prox-Newton steps.

    Attributes:
        iterations: passes over working sets.
        screen: leave out atoms that the duality gap proves to be 0; the solution counts them.

    Source: Friedman, Hastie and Tibshirani, 2010; Newton's step after Lee, Battle, Raina and Ng, 2006 (feature-sign search).
    """

    datafit: Datafit = field(default_factory=Quadratic)
    penalty: Penalty = field(default_factory=L1)
    tolerance: float = 1e-5
    iterations: int = 5000
    screen: bool = True

    def refuses(self, dictionary: LinearMap) -> str | None:
        """It needs columns and penalties of single coordinates."""
        if not isinstance(dictionary, Atoms) or dictionary.dtype.is_complex:
            return "Coordinate descent needs a real matrix of atoms; for other maps use proximal_gradient."
        if not self.penalty.separable:
            return f"Coordinate descent needs a penalty of single coordinates, not {type(self.penalty).__name__}; use proximal_gradient."
        if not isinstance(self.datafit, Quadratic) and type(self.datafit).bend is Datafit.bend:
            return f"Coordinate descent needs a datafit that is a sum of known second derivative, not {type(self.datafit).__name__}."
        return None

    def solve(self, dictionary: LinearMap, signals: Tensor, start: Tensor | None) -> Solution:
        """All rows at once through inner products, or row by row."""
        assert isinstance(dictionary, Atoms)
        atoms, rows = dictionary.matrix, len(signals)
        z = signals.new_zeros(rows, len(atoms)) if start is None else start
        z = self.penalty.prox(z, 0.0)
        # Inner products of all atoms pay where many rows share them.
        if isinstance(self.datafit, Quadratic) and len(atoms) <= min(16 * rows + 64, 8192):
            return self._together(dictionary, signals, z)
        norms = torch.linalg.vector_norm(atoms, dim=1)
        options = {"tolerance": self.tolerance, "passes": self.iterations, "screen": self.screen}
        found = [
            solve_one(atoms, norms, y, self.datafit, self.penalty, x, **options)
            for y, x in zip(signals, z, strict=True)
        ]
        number = signals.new_tensor([f.number for f in found])
        steps = torch.tensor([f.steps for f in found], dtype=torch.long, device=signals.device)
        screened = torch.tensor([f.screened for f in found], dtype=torch.long, device=signals.device)
        codes = torch.stack([f.z for f in found]) if found else z
        proves = found[0].proves if found else "duality gap"
        return Screened(codes, steps, number, number <= self.tolerance, proves, screened)

    def _together(self, a: Atoms, signals: Tensor, z: Tensor) -> Solution:
        gram, right = a.gram(), a.adjoint(signals)
        steepest = right.abs().amax(1)
        reach = torch.minimum(steepest, torch.full_like(steepest, getattr(self.penalty, "weight", 1.0)))
        goal = self.tolerance * torch.where(reach > 0, reach, steepest)
        steps = torch.zeros(len(signals), dtype=torch.long, device=signals.device)
        number, proves = certify(a, self.datafit, self.penalty, z, signals)
        alive = (~(number <= self.tolerance)).nonzero()[:, 0]
        for _ in range(8):  # a violation is not yet a gap: where it is too large, ten times less of it
            if not len(alive):
                break
            at, used = descend_quadratic(gram, right[alive], self.penalty, z[alive], goal[alive], self.iterations)
            z = z.index_copy(0, alive, at)
            steps[alive] += used
            number[alive], _ = certify(a, self.datafit, self.penalty, at, signals[alive])
            goal = goal / 10
            alive = alive[~(number[alive] <= self.tolerance) & (steps[alive] < self.iterations)]
        return Screened(z, steps, number, number <= self.tolerance, proves, torch.zeros_like(steps))


def path(
    dictionary: Float[Tensor, "n m"],
    signal: Float[Tensor, " m"],
    coder: Coder,
    factors: Float[Tensor, " steps"] | int = 100,
    least: float = 1e-3,
) -> tuple[Float[Tensor, " steps"], list[Solution]]:
    """Solutions for falling weights of the coder's penalty, each from the one before.

    Args:
        coder: with fields `penalty` (which has a `weight`) and `datafit`.
        factors: weights, or how many, from the largest that matters down to `least` times that, evenly in logarithms.

    Returns:
        weights and a solution of one row for each.
    """
    penalty, datafit = coder.penalty, coder.datafit  # type: ignore[attr-defined]
    if isinstance(factors, int):
        zero = torch.zeros_like(signal)
        top = float(replace(penalty, weight=1.0).largest(dictionary @ datafit.gradient(zero, signal)))
        factors = torch.logspace(0, torch.log10(torch.tensor(least)).item(), factors, dtype=torch.float64) * top
    found: list[Solution] = []
    for weight in factors.tolist():
        own = replace(coder, penalty=replace(penalty, weight=weight))  # type: ignore[type-var]
        found.append(own(dictionary, signal[None], found[-1].z if found else None))
    return factors, found
