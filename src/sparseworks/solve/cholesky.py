"""Factors of a damped second-moment matrix: the inverse's Cholesky factor that OBS sweeps use, and the inverse's diagonal."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import CalibrationError
from sparseworks.core.stats import Gram, Stat

_RETRIES = 6


def inverse_factor(gram: Gram, damp: float) -> Float[Tensor, "cols cols"]:
    """Upper U with U^T U = H^-1, H = X^T X / tokens + damp * mean(diagonal) * I (dead inputs: diagonal 1); float64.

    One Cholesky factorisation and one triangular inverse: H = R R^T with R upper, found by factoring the flipped matrix,
    gives U = R^-1 without ever forming H^-1.

    Raises:
        CalibrationError: H is not positive definite even with a damping a thousand times larger.
    """
    for attempt in range(_RETRIES):
        # Rounding can leave a singular H slightly indefinite: more damping, as little as it takes.
        h = gram.damped(damp if attempt == 0 else max(damp, 1e-8) * 10.0**attempt)
        lower, info = torch.linalg.cholesky_ex(h.flip(0, 1))
        if int(info) == 0 and bool(torch.isfinite(lower).all()):
            eye = torch.eye(h.shape[0], dtype=h.dtype, device=h.device)
            return torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1)
    raise CalibrationError(
        f"The {gram.cols}x{gram.cols} second moments of {gram.count} inputs are not positive definite; "
        "give more calibration data or a larger `damp`."
    )


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
