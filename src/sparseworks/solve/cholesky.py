"""Factors of a damped second-moment matrix: the inverse's Cholesky factor that OBS sweeps use, and the inverse's diagonal."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import CalibrationError
from sparseworks.core.finite import all_finite
from sparseworks.core.stats import Gram, Stat

_RETRIES = 6
_BLOCK = 512  # columns of a triangle inverted together
_AT_ONCE = 1 << 20  # numbers turned together


def inverse_factor(gram: Gram, damp: float) -> Float[Tensor, "cols cols"]:
    """Upper U with U^T U = H^-1, H = X^T X / tokens + damp * mean(diagonal) * I (dead inputs: diagonal 1); float64.

    One Cholesky factorisation and one triangular inverse: H = R R^T with R upper, found by factoring the flipped matrix,
    gives U = R^-1 without ever forming H^-1. All of it happens in one copy of the Gram matrix, with 2 x 512 columns beside it.

    Raises:
        CalibrationError: H is not positive definite even with a damping a thousand times larger.
    """
    for attempt in range(_RETRIES):
        # Rounding can leave a singular H slightly indefinite: more damping, as little as it takes.
        h = gram.damped(damp if attempt == 0 else max(damp, 1e-8) * 10.0**attempt).contiguous()
        flipped = _flip_(h).mT  # h is symmetric, and LAPACK works in place on what lies column by column
        lower, info = torch.linalg.cholesky_ex(
            flipped, out=(flipped, torch.empty((), dtype=torch.int32, device=h.device))
        )
        if int(info) == 0 and all_finite(lower.mT):
            _invert_(lower)
            return _flip_(lower.mT).mT
    raise CalibrationError(
        f"The {gram.cols}x{gram.cols} second moments of {gram.count} inputs are not positive definite; "
        "give more calibration data or a larger `damp`."
    )


def _flip_(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Both axes backwards, in place; the matrix is contiguous."""
    flat, n = matrix.view(-1), matrix.numel()
    for at in range(0, n // 2, _AT_ONCE):
        to = min(at + _AT_ONCE, n // 2)
        front = flat[at:to].flip(0)
        flat[at:to] = flat[n - to : n - at].flip(0)
        flat[n - to : n - at] = front
    return matrix


def _invert_(lower: Float[Tensor, "n n"]) -> None:
    """L^-1 of a lower triangle in place, from the last columns to the first: under the inverse D of a block on the diagonal
    stands -B A D, with A the block below it and B the inverse of the triangle below that."""
    n = lower.shape[0]
    for at in reversed(range(0, n, _BLOCK)):
        to = min(at + _BLOCK, n)
        eye = torch.eye(to - at, dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower[at:to, at:to], eye, upper=False)
        if to < n:
            lower[to:, at:to] = (lower[to:, to:] @ (lower[to:, at:to] @ inverse)).neg_()
        lower[at:to, at:to] = inverse


def inverse_diagonal(gram: Gram, damp: float) -> Float[Tensor, " cols"]:
    """diag(H^-1) of the damped second-moment matrix, float64."""
    return inverse_factor(gram, damp).square().sum(dim=0)


class SweepFactor(Stat):
    """What an OBS sweep knows of its columns: U of `inverse_factor`, and U_jj^2 = [H_{j:,j:}^-1]_jj.

    Never gathered: a sweep adds it to the statistics it passes to the score.
    """

    source = "sweep"

    def __init__(self, rows: int, upper: Float[Tensor, "cols cols"]):
        super().__init__(rows, upper.shape[0])
        self.upper = upper

    @property
    def pivots(self) -> Float[Tensor, " cols"]:
        """U_jj^2: the inverse Hessian's diagonal among the columns not yet swept."""
        return self.upper.diagonal().square()
