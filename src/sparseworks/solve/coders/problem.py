"""What coders of a kind share: a map on flattened codes, least squares on supports, and how a result is handed back."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from sparseworks.core.budget import Budget, Count, Residual
from sparseworks.core.errors import BudgetError, KernelError
from sparseworks.core.pattern import ROW, Pattern
from sparseworks.core.select import select_mask
from sparseworks.solve.coder import Solution
from sparseworks.solve.least_squares import subsystems
from sparseworks.solve.linear import LinearMap
from sparseworks.solve.maps.atoms import Atoms

_PER_SIGNAL = Pattern(group=ROW)
EIGHT: Budget = Count(8)


class Problem:
    """A map between flat codes (rows, n) and flat signals (rows, m).

    Attributes:
        a: the map.
        codes, features: n and m.
    """

    def __init__(self, a: LinearMap):
        self.a = a
        self.codes, self.features = (torch.Size(shape).numel() for shape in (a.domain, a.codomain))

    def forward(self, z: Shaped[Tensor, "rows n"]) -> Shaped[Tensor, "rows m"]:
        """A z."""
        return self.a.forward(z.reshape(-1, *self.a.domain)).reshape(len(z), self.features)

    def adjoint(self, u: Shaped[Tensor, "rows m"]) -> Shaped[Tensor, "rows n"]:
        """A* u."""
        return self.a.adjoint(u.reshape(-1, *self.a.codomain)).reshape(len(u), self.codes)

    @property
    def matrix(self) -> Float[Tensor, "n m"]:
        """One atom a row.

        Raises:
            KernelError: the map is not a matrix.
        """
        if not isinstance(self.a, Atoms):
            raise KernelError(f"{type(self.a).__name__} is not held as a matrix.")
        return self.a.matrix

    @cached_property
    def gram(self) -> Float[Tensor, "n n"]:
        """Inner products of the atoms, float64."""
        wide = self.matrix.double()
        return wide @ wide.T

    def fit(self, y: Float[Tensor, "rows m"], support: Bool[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """argmin ||y - z D|| over z on the support of each row."""
        right = y.double() @ self.matrix.double().T
        return subsystems(self.gram, support, right).to(y.dtype)

    def least_norm(self, r: Float[Tensor, "rows m"]) -> Float[Tensor, "rows n"]:
        """r (D^T D)^-1 D^T: of all codes with z D = r the shortest.

        Raises:
            KernelError: the atoms do not span the signals.
        """
        return (torch.cholesky_solve(r.double().T, self._frame).T @ self.matrix.double().T).to(r.dtype)

    @cached_property
    def _frame(self) -> Float[Tensor, "m m"]:
        wide = self.matrix.double()
        lower, info = torch.linalg.cholesky_ex(wide.T @ wide)
        if int(info) or float(lower.diagonal().min()) <= 1e-7 * float(lower.diagonal().max()):
            raise KernelError(
                "The atoms do not span the signals, so A A* has no inverse: hard thresholding pursuit needs none."
            )
        return lower

    @cached_property
    def squared_norm(self) -> float:
        """Largest eigenvalue of A* A; of what power iteration gives, from below, a little more; 1 of a map that is 0."""
        return self.a.squared_norm() * (1.0 if isinstance(self.a, Atoms) else 1.01) or 1.0


def keep(v: Shaped[Tensor, "rows n"], count: int) -> Shaped[Tensor, "rows n"]:
    """The `count` largest of each row in modulus, the others 0."""
    return torch.where(select_mask(v.abs(), _PER_SIGNAL, min(count, v.shape[1])), v, torch.zeros_like(v))


def needs_matrix(name: str, a: LinearMap) -> str | None:
    """Why a coder that solves least squares on atoms cannot work with this map."""
    if not isinstance(a, Atoms):
        return f"{name} fits by inner products of atoms: give it the dictionary as a matrix, not a {type(a).__name__}."
    if a.dtype not in (torch.float32, torch.float64):
        return f"{name} works in float32 and float64, not in {a.dtype}."
    return None


def most_atoms(budget: Budget, limit: int, cap: int | None = None) -> tuple[int, float]:
    """How many atoms a signal may have, and which share of its squared norm may be left.

    Raises:
        BudgetError: another kind of budget than `Count` and `Residual`, or more atoms than there are.
    """
    if isinstance(budget, Residual):
        return limit if cap is None else min(cap, limit), budget.value
    if not isinstance(budget, Count):
        raise BudgetError(f"Atoms of a signal are counted by Count or by Residual, not by {budget}.")
    if budget.value > limit:
        raise BudgetError(f"Cannot choose {budget.value} atoms a signal where only {limit} can be independent.")
    return budget.value, 0.0


def share_left(residual: Shaped[Tensor, "rows m"], y: Shaped[Tensor, "rows m"]) -> Float[Tensor, " rows"]:
    """||residual||^2 / ||y||^2; 0 for a signal of zeros."""
    energy = y.abs().square().sum(1)
    return residual.abs().square().sum(1) / torch.where(energy > 0, energy, 1)


def rounding(dtype: torch.dtype) -> float:
    """Ten units of rounding: what a sum that is 0 may be, relative to its terms."""
    return 10 * torch.finfo(dtype).eps


def solution(
    problem: Problem, z: Tensor, steps: Tensor, certificate: Tensor, tolerance: float, proves: str
) -> Solution:
    """The result in the shape of the map's domain."""
    return Solution(z.reshape(len(z), *problem.a.domain), steps, certificate, certificate <= tolerance, proves)
