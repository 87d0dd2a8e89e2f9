"""A synthetic control with weights that are equal in size rather than few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import NonFiniteError, ShapeError
from sparseworks.core.finite import require_floating
from sparseworks.solve.penalties import LInf


@dataclass(frozen=True)
class SyntheticControl:
    """mean + panel w: what the treated unit would have been.

    Attributes:
        weights: one a control unit.
        intercept: mean of the treated unit less that of its control.
    """

    weights: Float[Tensor, " controls"]
    intercept: float

    def __call__(self, panel: Float[Tensor, "times controls"]) -> Float[Tensor, " times"]:
        """The counterfactual at the times of `panel`."""
        return self.intercept + panel @ self.weights


def linf_synthetic_control(
    controls: Float[Tensor, "times controls"],
    treated: Float[Tensor, " times"],
    weight: float = 1.0,
    *,
    total: float | None = 1.0,
    non_negative: bool = False,
    iterations: int = 2000,
    tolerance: float = 1e-9,
) -> SyntheticControl:
    """min over w and mu of ||treated - mu - controls w||^2 / 2 + weight max_j |w_j|, sum w = total, and w >= 0 if asked.

    By ADMM: least squares under the sum, the proximal map of the maximum, the clamp. weight = 0 with `non_negative` is the
    classical simplex; with a sum, equal weights (difference in differences) are what a large weight gives.

    Args:
        total: None leaves the sum free, as the authors have it; then a large weight gives 0.
        tolerance: of the change of the weights an iteration.

    Raises:
        ShapeError: not a panel (times, controls) and a series of as many times.
        DtypeError: not float32 or float64, both alike.
        NonFiniteError: NaN or infinity.

    Source: Wang, Xing and Ye, 2025, arXiv 2510.26053; sum and sign after Abadie, Diamond and Hainmueller, 2010.
    """
    if controls.dim() != 2 or not controls.numel() or treated.shape != controls.shape[:1]:
        raise ShapeError(f"Needs (times, controls) and (times,), got {tuple(controls.shape)}, {tuple(treated.shape)}.")
    require_floating("The panel and the treated series", controls, treated)
    if not bool(torch.isfinite(controls).all() & torch.isfinite(treated).all()):
        raise NonFiniteError("The panel or the treated series holds NaN or infinity.")
    x, y = (controls - controls.mean(0)).double(), (treated - treated.mean()).double()
    n = x.shape[1]
    gram, right = x.T @ x, x.T @ y
    rho = max(float(gram.diagonal().mean()), 1e-12)
    copies = 1 + non_negative
    factor = torch.linalg.cholesky(gram + rho * copies * torch.eye(n, dtype=x.dtype, device=x.device))
    solved = lambda b: torch.cholesky_solve(b.unsqueeze(1), factor)[:, 0]  # noqa: E731
    ones = solved(torch.ones_like(right))
    z = torch.full((copies, n), (total or 0.0) / n, dtype=x.dtype, device=x.device)
    dual = torch.zeros_like(z)
    for _ in range(iterations):
        w = solved(right + rho * (z - dual).sum(0))
        if total is not None:
            w = w + ones * (total - w.sum()) / ones.sum()
        before = z
        z = w + dual
        largest = LInf(weight).prox(z[0], 1 / rho) if weight > 0 else z[0]
        z = torch.stack([largest, z[1].clamp(min=0)]) if non_negative else largest.unsqueeze(0)
        dual = dual + w - z
        if float((z - before).abs().max()) <= tolerance and float((z - w).abs().max()) <= tolerance:
            break
    found = (z[-1] if non_negative else w).to(controls.dtype)
    return SyntheticControl(found, float(treated.mean() - controls.mean(0) @ found))
