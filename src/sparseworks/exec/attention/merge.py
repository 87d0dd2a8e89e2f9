"""Attention over a union of disjoint key sets, from the attention over each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import ShapeError


def merge(
    parts: Sequence[tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows"]]],
) -> tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows"]]:
    """lse = log sum_i e^{lse_i}, output = sum_i e^{lse_i - lse} output_i: exact for disjoint key sets.

    Rows that attend to nothing in every part give 0 and -inf. Differentiable. (Dao et al. 2022, arXiv 2205.14135)

    Raises:
        ShapeError: no parts, or parts of different shapes.
    """
    if not parts:
        raise ShapeError("There is nothing to merge: give at least one (output, lse).")
    for out, lse in parts:
        if out.shape != parts[0][0].shape or lse.shape != out.shape[:-1]:
            raise ShapeError(
                f"Parts are (rows..., d) with (rows...), all alike; got {tuple(out.shape)} with {tuple(lse.shape)}."
            )
    each = torch.stack([lse for _, lse in parts])
    most = each.detach().amax(0)
    most = torch.where(most.isneginf(), 0.0, most)
    weight = (each - most).exp()
    total = weight.sum(0)
    none = total == 0
    share = weight / torch.where(none, 1.0, total)
    out = (share.unsqueeze(-1) * torch.stack([out for out, _ in parts])).sum(0)
    lse = torch.where(none, -torch.inf, most + torch.where(none, 1.0, total).log())
    return out.to(parts[0][0].dtype), lse
