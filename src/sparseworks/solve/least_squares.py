"""Exact least squares on a support: every row its own system, solved by batched Cholesky in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.solver import masked
from sparseworks.core.support import Support
from sparseworks.solve.guard import keep_better, require_finite

_CHUNK = 1 << 25  # entries of gathered systems held at once: 128 MiB in float32
_REFINEMENTS = 3
_TOLERANCE = 1e-6  # residual of a float32 solution, relative to its right-hand side, above which float64 takes over


def least_squares(
    weight: Float[Tensor, "rows cols"], support: Support, moments: Float[Tensor, "cols cols"]
) -> Float[Tensor, "rows cols"]:
    """argmin over W' on the support of tr((W' - W) H (W' - W)^T), H = `moments`; exact zeros elsewhere.

    A row that keeps S and loses P = not S solves H_SS w'_S = (H w)_S; where P is the smaller set, the same solution
    comes from w' = w - H^-1_:P (H^-1_PP)^-1 w_P. A row whose rounded solution is worse than the masked row keeps that.

    Args:
        weight: dense weight; the result has its dtype and device.
        support: what may be nonzero.
        moments: symmetric, positive (semi-)definite: second moments of the inputs, damped or not.

    Raises:
        NonFiniteError: NaN or infinity in the weight.
        ShapeError: sizes that do not fit together.
    """
    require_finite(weight, moments, support)
    h = moments.to(weight.device, torch.float64)
    kept = support.mask().to(weight.device)
    w = weight.double()
    solved = torch.empty_like(w)
    few = 2 * kept.sum(dim=1) <= kept.shape[1]
    inverse = None if bool(few.all()) else _inverse(h)
    few = torch.ones_like(few) if inverse is None else few
    solved[few] = subsystems(h, kept[few], w[few] @ h)
    if inverse is not None:
        lost = ~kept[~few]
        solved[~few] = w[~few] - subsystems(inverse, lost, w[~few]) @ inverse
    return keep_better(weight, masked(solved.to(weight.dtype), support), masked(weight, support), h)


def subsystems(
    matrix: Float[Tensor, "n n"], sets: Bool[Tensor, "rows n"], rhs: Float[Tensor, "rows n"]
) -> Float[Tensor, "rows n"]:
    """For every row r the x with x = 0 outside its set T and M_TT x_T = rhs_T; float64.

    Rows are taken in order of |T|, so that a batch of Cholesky factorisations pads little and holds `_CHUNK` entries.
    Factors are float32, residuals float64 (one product with all of M); systems for which that is not enough are factored
    in float64, and singular ones get the solution of least norm.
    """
    x = torch.zeros_like(rhs)
    single = matrix.float()
    for rows, columns, real in _chunks(sets):
        b = rhs[rows].gather(1, columns) * real
        part, bad = _refined(single, matrix, columns, real, b)
        for i in bad.nonzero().flatten().tolist():
            t = columns[i, real[i]]
            part[i] = part.new_zeros(part.shape[1]).masked_scatter(
                real[i], _solve_double(matrix[t][:, t], b[i, real[i]])
            )
        x[rows] = _spread(part, columns, matrix.shape[0])
    return x


def _chunks(
    sets: Bool[Tensor, "rows n"],
) -> Iterator[tuple[Int[Tensor, " batch"], Int[Tensor, "batch k"], Bool[Tensor, "batch k"]]]:
    """Rows in batches, with the columns of each row's set, padded to the batch's largest."""
    sizes, order = sets.sum(dim=1).sort(descending=True, stable=True)
    start, widths = 0, sizes.tolist()
    while start < len(widths) and widths[start] > 0:
        k = widths[start]
        rows = order[start : start + max(1, _CHUNK // k**2)]
        chosen = sets[rows]
        columns = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :k]
        yield rows, columns, chosen.gather(1, columns)
        start += len(rows)


def _refined(
    single: Float[Tensor, "n n"],
    double: Float[Tensor, "n n"],
    columns: Int[Tensor, "batch k"],
    real: Bool[Tensor, "batch k"],
    b: Float[Tensor, "batch k"],
) -> tuple[Float[Tensor, "batch k"], Bool[Tensor, " batch"]]:
    """Solutions, and which of them are not to be trusted."""
    lower, info = torch.linalg.cholesky_ex(_gather(single, columns, real))
    x, residual = torch.zeros_like(b), b
    for _ in range(_REFINEMENTS):
        step = torch.linalg.solve_triangular(lower, residual.float().unsqueeze(-1), upper=False)
        step = torch.linalg.solve_triangular(lower.mT, step, upper=True).squeeze(-1)
        x = x + step.double() * real
        residual = (b - (_spread(x, columns, double.shape[0]) @ double).gather(1, columns)) * real
    return x, (info > 0) | ~(residual.norm(dim=1) <= _TOLERANCE * b.norm(dim=1))


def _spread(x: Float[Tensor, "batch k"], columns: Int[Tensor, "batch k"], n: int) -> Float[Tensor, "batch n"]:
    """`x` at its columns; padding adds zero to a column that is not in the set."""
    return x.new_zeros(x.shape[0], n).scatter_add_(1, columns, x)


def _solve_double(system: Float[Tensor, "k k"], b: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    lower, info = torch.linalg.cholesky_ex(system)
    if int(info) == 0:
        x = torch.cholesky_solve(b.unsqueeze(-1), lower).squeeze(-1)
        if bool(torch.isfinite(x).all()):
            return x
    return torch.linalg.pinv(system, hermitian=True) @ b


def _gather(
    matrix: Float[Tensor, "n n"], columns: Int[Tensor, "batch k"], real: Bool[Tensor, "batch k"]
) -> Float[Tensor, "batch k k"]:
    """M_TT of every row; the identity where padded."""
    systems = torch.stack([matrix.index_select(0, t).index_select(1, t) for t in columns])
    if bool(real.all()):
        return systems
    inside = real.unsqueeze(2) & real.unsqueeze(1)
    return torch.where(inside, systems, torch.eye(columns.shape[1], dtype=matrix.dtype, device=matrix.device))


def _inverse(h: Float[Tensor, "n n"]) -> Float[Tensor, "n n"] | None:
    """H^-1, or None where H is singular to float64."""
    lower, info = torch.linalg.cholesky_ex(h)
    if int(info) != 0:
        return None
    return torch.cholesky_inverse(lower)
