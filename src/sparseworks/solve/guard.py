"""What every solver promises: finite inputs of fitting shape, and no row worse than its masked weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import NonFiniteError, ShapeError
from sparseworks.core.support import Support

_ROWS = 256


def require_finite(
    weight: Float[Tensor, "rows cols"], moments: Float[Tensor, "cols cols"], support: Support | None = None
) -> None:
    """Check what a solver is given.

    Raises:
        NonFiniteError: NaN or infinity in the weight.
        ShapeError: the moments or the support belong to another shape.
    """
    if weight.dim() != 2 or tuple(moments.shape) != (weight.shape[1],) * 2:
        raise ShapeError(
            f"A weight of shape {tuple(weight.shape)} needs input moments of {weight.shape[-1]} x {weight.shape[-1]}, "
            f"got {tuple(moments.shape)}."
        )
    if support is not None and support.shape != tuple(weight.shape):
        raise ShapeError(f"The support covers {support.shape}, the weight is {tuple(weight.shape)}.")
    if not bool(torch.isfinite(weight).all()):
        raise NonFiniteError(f"A weight of shape {tuple(weight.shape)} holds NaN or infinity; it cannot be solved for.")


def row_errors(change: Float[Tensor, "rows cols"], moments: Float[Tensor, "cols cols"]) -> Float[Tensor, " rows"]:
    """diag(D H D^T): mean squared output error of each row, in float64 and in bounded memory."""
    h = moments.to(change.device, torch.float64)
    parts = [((d @ h) * d).sum(dim=1) for d in (c.double() for c in change.split(_ROWS))]
    return torch.cat(parts) if parts else change.new_zeros(0, dtype=torch.float64)


def keep_better(
    weight: Float[Tensor, "rows cols"],
    proposed: Float[Tensor, "rows cols"],
    fallback: Float[Tensor, "rows cols"],
    moments: Float[Tensor, "cols cols"],
) -> Float[Tensor, "rows cols"]:
    """Row by row the proposal, or the fallback where the proposal is farther from `weight` in the output.

    `moments` may be the second moments of the inputs or any multiple of them.

    Greedy sweeps and rounding to 16 bits may lose against not repairing at all; this makes "never worse" a guarantee.
    """
    good = row_errors(proposed - weight, moments) <= row_errors(fallback - weight, moments)
    return torch.where(good.unsqueeze(1), proposed, fallback)
