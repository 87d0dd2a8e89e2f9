"""Skipping inside the softmax: tiles of kept units whose logits lie far below the running maximum add nothing."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept, Output


def attend_skipping(heads: Heads, kept: Kept, margin: float | Float[Tensor, " heads"]) -> tuple[Output, float]:
    """Attention over kept units by an online softmax, and the share of their products with v that were skipped.

    A unit's product P v is skipped where for every query of the unit max_j s_ij <= running maximum - `margin` (nats, for all
    heads or for each; the second stage of Zhang et al. 2025, arXiv 2502.18137, which counts in log2). What is skipped weighs at most e^-margin a pair against
    the largest one, and stays in the denominator. A reference: it shows what a kernel could leave out.

    Raises:
        ShapeError: a mask that is not on the grid of `heads`.
    """
    kept.check(heads)
    v, margin = heads.shared(heads.v.float()), torch.as_tensor(margin, device=heads.q.device).unsqueeze(-1)
    mask = kept.mask.expand(heads.batch, heads.heads, -1, -1)
    outs, lses, skipped, computed = [], [], 0, 0
    for row, (first, last) in enumerate(heads.rows_of(kept.unit.rows)):
        scores = heads.scores(slice(first, last))
        most = scores.new_full(scores.shape[:-1], -torch.inf)
        total, out = torch.zeros_like(most), torch.zeros_like(heads.q[:, :, first:last], dtype=torch.float32)
        for column, (a, b) in enumerate(heads.columns_of(kept.unit.cols)):
            on = mask[:, :, row, column]
            tile = scores[..., a:b].masked_fill(~on[..., None, None], -torch.inf)
            local = tile.amax(-1)
            on = on & (local > -torch.inf).any(-1)
            if not on.any():
                continue
            new = torch.maximum(most, local)
            safe = torch.where(new.isneginf(), 0.0, new)
            weight, decay = (tile - safe.unsqueeze(-1)).exp(), (most - safe).exp()
            total = total * decay + weight.sum(-1)
            small = on & (local <= most - margin).all(-1)
            weight = weight * ~small[..., None, None]
            out = out * decay.unsqueeze(-1) + weight @ v[:, :, a:b]
            most, skipped, computed = new, skipped + int(small.sum()), computed + int(on.sum())
        outs.append((out / torch.where(total > 0, total, 1.0).unsqueeze(-1)).to(heads.q.dtype))
        lses.append(torch.where(total > 0, most + total.log(), -torch.inf))
    return (torch.cat(outs, 2), torch.cat(lses, 2)), skipped / max(computed, 1)
