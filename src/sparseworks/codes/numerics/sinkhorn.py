"""Entropic optimal transport: Sinkhorn's updates, then Newton steps whose Hessian keeps only the largest entries of the plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.numerics.matrices import as_csr, transposed
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError
from sparseworks.core.pattern import Pattern
from sparseworks.core.select import select_mask

_WHOLE = Pattern()  # entries of the whole plan compete
_SEARCH, _ARMIJO = 40, 1e-4


@dataclass(frozen=True)
class Transport:
    """A plan P with marginals near (r, c).

    Attributes:
        plan: (n, m).
        x, y: dual potentials.
        errors: l1 error of the marginals after every step, Sinkhorn's first.
        sinkhorn: how many of the steps were Sinkhorn's.
    """

    plan: Float[Tensor, "n m"]
    x: Float[Tensor, " n"]
    y: Float[Tensor, " m"]
    errors: tuple[float, ...]
    sinkhorn: int


def sinkhorn_newton(
    cost: Float[Tensor, "n m"],
    rows: Float[Tensor, " n"],
    columns: Float[Tensor, " m"],
    eta: float,
    *,
    warm: int = 20,
    steps: int = 50,
    density: float = 0.15,
    tolerance: float = 1e-12,
) -> Transport:
    """max over (x, y) of -(1/eta) sum P + r.x + c.y, P = exp(eta (-C + x 1^T + 1 y^T) - 1): `warm` Sinkhorn updates, then Newton.

    The Hessian eta [[diag(P 1), P], [P^T, diag(P^T 1)]] is taken with the diagonal exact and the `density` n m largest entries
    of P; its system is solved by conjugate gradients, orthogonally to its null direction (1, -1), with a backtracking line search.

    Args:
        cost: C.
        rows, columns: marginals, positive, of one sum.
        eta: 1 / entropic regularisation.
        density: share of the plan in the Hessian; 1 is Newton itself.
        tolerance: l1 error of the marginals at which it ends.

    Raises:
        ShapeError: marginals that do not fit the cost.
        BudgetError: marginals that are not positive or of different sums, or numbers out of range.
        NonFiniteError: NaN or infinity.

    Source: Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao and Ying, 2024 (arXiv 2401.12253).
    """
    c, r, q = _checked(cost, rows, columns, eta, density)
    x, y = torch.zeros_like(r), torch.zeros_like(q)
    errors: list[float] = []
    plan_of = lambda x, y: torch.exp(eta * (x[:, None] + y[None, :] - c) - 1)  # noqa: E731
    for _ in range(warm):
        x = x + (r.log() - _log_sum(eta, c, x, y, 1)) / eta
        y = y + (q.log() - _log_sum(eta, c, x, y, 0)) / eta
        errors.append(_error(plan_of(x, y), r, q))
        if errors[-1] <= tolerance:
            break
    used = len(errors)
    keep = max(1, round(density * c.numel()))
    for _ in range(steps if not errors or errors[-1] > tolerance else 0):
        p = plan_of(x, y)
        gradient = torch.cat([r - p.sum(1), q - p.sum(0)])
        direction = _newton(p, gradient, eta, keep)
        x, y = _search(lambda x, y: -plan_of(x, y).sum() / eta + r @ x + q @ y, x, y, direction, gradient)
        errors.append(_error(plan_of(x, y), r, q))
        if errors[-1] <= tolerance:
            break
    return Transport(plan_of(x, y), x, y, tuple(errors), used)


def _log_sum(eta: float, c: Tensor, x: Tensor, y: Tensor, dim: int) -> Tensor:
    return torch.logsumexp(eta * (x[:, None] + y[None, :] - c) - 1, dim)


def _error(plan: Tensor, r: Tensor, q: Tensor) -> float:
    return float((plan.sum(1) - r).abs().sum() + (plan.sum(0) - q).abs().sum())


def _newton(p: Tensor, gradient: Tensor, eta: float, keep: int) -> Tensor:
    """-H^-1 gradient on the sparsified Hessian, by conjugate gradients preconditioned with its diagonal."""
    n = len(p)
    sparse = as_csr(torch.where(select_mask(p, _WHOLE, keep), p, 0))
    turned = transposed(sparse)
    diagonal = torch.cat([p.sum(1), p.sum(0)])
    null = torch.cat([torch.ones(n, dtype=p.dtype), -torch.ones(p.shape[1], dtype=p.dtype)])
    null /= torch.linalg.vector_norm(null)
    straight = lambda v: v - null * (null @ v)  # noqa: E731
    product = lambda v: eta * (diagonal * v + torch.cat([sparse @ v[n:], turned @ v[:n]]))  # noqa: E731
    z = torch.zeros_like(gradient)
    residual = straight(gradient)
    ready = straight(residual / (eta * diagonal))
    along, energy = ready.clone(), residual @ ready
    for _ in range(4 * len(gradient)):
        h = straight(product(along))
        curvature = along @ h
        if not float(curvature) > 0:
            break
        step = energy / curvature
        z, residual = z + step * along, residual - step * h
        if float(torch.linalg.vector_norm(residual)) <= 1e-10 * float(torch.linalg.vector_norm(gradient)):
            break
        ready = straight(residual / (eta * diagonal))
        before, energy = energy, residual @ ready
        along = ready + (energy / before) * along
    return z


def _search(value, x: Tensor, y: Tensor, direction: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    dx, dy = direction[: len(x)], direction[len(x) :]
    here, slope, step = value(x, y), float(gradient @ direction), 1.0
    for _ in range(_SEARCH):
        found = value(x + step * dx, y + step * dy)
        # Near the optimum the gain is below the value's rounding: a full step is then taken on trust.
        if bool(torch.isfinite(found)) and float(found - here) >= _ARMIJO * step * slope - 1e-14 * abs(float(here)):
            break
        step /= 2
    return x + step * dx, y + step * dy


def _checked(cost: Tensor, rows: Tensor, columns: Tensor, eta: float, density: float) -> tuple[Tensor, Tensor, Tensor]:
    if cost.dim() != 2 or rows.shape != cost.shape[:1] or columns.shape != cost.shape[1:]:
        raise ShapeError(
            f"A cost {tuple(cost.shape)} has marginals of its sides, got {tuple(rows.shape)}, {tuple(columns.shape)}."
        )
    c, r, q = cost.double(), rows.double(), columns.double()
    if not all(bool(torch.isfinite(t).all()) for t in (c, r, q)):
        raise NonFiniteError("The cost or the marginals hold NaN or infinity.")
    rounding = 64 * max((torch.finfo(t.dtype).eps for t in (rows, columns) if t.is_floating_point()), default=0.0)
    if bool((r <= 0).any() | (q <= 0).any()) or abs(float(r.sum() - q.sum())) > max(rounding, 1e-9) * float(r.sum()):
        raise BudgetError("Marginals must be positive and have one sum; leave points of mass 0 out.")
    if not eta > 0 or not 0 < density <= 1:
        raise BudgetError(f"eta must be positive and the density in (0, 1], got {eta} and {density}.")
    return c, r, q * (r.sum() / q.sum())  # sums of single-precision marginals differ in the last digits
