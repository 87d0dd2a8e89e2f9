"""The geometric median of rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import CalibrationError


def geometric_median(
    rows: Float[Tensor, "n d"], steps: int = 100, tolerance: float = 1e-6, most: int = 4096
) -> Float[Tensor, " d"]:
    """argmin_m sum_i ||x_i - m||, by Weiszfeld's iteration on at most `most` rows, evenly taken.

    Raises:
        CalibrationError: there are no rows.

    Source: Weiszfeld, 1937; as the pre-bias of autoencoders Bricken et al., 2023.
    """
    if not len(rows):
        raise CalibrationError("The geometric median of no rows is not known; give at least one.")
    at = torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()
    some = rows[at.to(rows.device)].double()
    middle = some.mean(0)
    for _ in range(steps):
        weight = 1 / (some - middle).norm(dim=1).clamp(min=1e-12)
        new = (weight @ some) / weight.sum()
        if float((new - middle).norm()) <= tolerance * float(middle.norm() + 1e-12):
            break
        middle = new
    return middle.to(rows.dtype)
