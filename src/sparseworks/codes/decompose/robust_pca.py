"""Principal component pursuit: a matrix as low rank plus sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError
from sparseworks.solve.penalty import soft


@dataclass(frozen=True)
class LowRankPlusSparse:
    """D ~ L + S.

    Attributes:
        low, sparse: L and S, as D.
        rank: of L, numerically.
        error: ||D - L - S|| / ||D||.
        steps: iterations.
    """

    low: Float[Tensor, "*batch rows cols"]
    sparse: Float[Tensor, "*batch rows cols"]
    rank: int
    error: float
    steps: int


def robust_pca(
    matrix: Float[Tensor, "*batch rows cols"],
    weight: float | None = None,
    *,
    tolerance: float = 1e-7,
    most: int = 500,
) -> LowRankPlusSparse:
    """min ||L||_* + weight ||S||_1 with L + S = D, by the inexact augmented Lagrangian; weight = 1 / sqrt(max(rows, cols)).

    L = SVT_{1/mu}(D - S + Y / mu), S = soft_{weight/mu}(D - L + Y / mu), Y += mu (D - L - S), mu = rows cols / (4 ||D||_1).
    A batch is solved in one go; it ends when every matrix has converged. Below float64 `tolerance` is 4 units of rounding at least.

    Raises:
        ShapeError: no matrix.
        DtypeError: integers.
        NonFiniteError: NaN or infinity.
        BudgetError: a weight or tolerance that is not positive.

    Source: Candes, Li, Ma and Wright, 2011 (arXiv 0912.3599).
    """
    if matrix.dim() < 2 or not matrix.numel():
        raise ShapeError(f"Robust PCA needs matrices with entries, got {tuple(matrix.shape)}.")
    if not (matrix.is_floating_point() or matrix.is_complex()):
        raise DtypeError(f"Robust PCA works in float32 and float64, got {matrix.dtype}: convert it.")
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError("The matrix holds NaN or infinity.")
    rows, cols = matrix.shape[-2:]
    weight = 1 / math.sqrt(max(rows, cols)) if weight is None else weight
    if not (weight > 0 and tolerance > 0):
        raise BudgetError(f"Weight and tolerance must be positive, got {weight} and {tolerance}.")
    size = torch.linalg.matrix_norm(matrix, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    total = matrix.abs().sum((-2, -1), keepdim=True)
    mu = torch.where(total > 0, rows * cols / (4 * torch.where(total > 0, total, 1)), 1)
    # No error falls below the rounding of its own three terms.
    tolerance = max(tolerance, 4 * torch.finfo(matrix.dtype).eps)
    low, sparse, dual = (torch.zeros_like(matrix) for _ in range(3))
    error, steps = math.inf, 0
    while error > tolerance and steps < most:
        low = shrink_spectrum(matrix - sparse + dual / mu, 1 / mu)
        sparse = soft(matrix - low + dual / mu, weight / mu)
        rest = matrix - low - sparse
        dual = dual + mu * rest
        error, steps = float((torch.linalg.matrix_norm(rest, keepdim=True) / size).max()), steps + 1
    rank = int(torch.linalg.matrix_rank(low, rtol=1e-4).max())
    return LowRankPlusSparse(low, sparse, rank, error, steps)


def shrink_spectrum(
    matrix: Float[Tensor, "*batch rows cols"], threshold: float | Float[Tensor, "*batch 1 1"]
) -> Float[Tensor, "*batch rows cols"]:
    """U (diag(s) - threshold)_+ V^T: the proximal map of the nuclear norm."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    cut = threshold.squeeze(-1) if isinstance(threshold, Tensor) else threshold
    return (u * (s - cut).clamp(min=0).unsqueeze(-2)) @ vh
