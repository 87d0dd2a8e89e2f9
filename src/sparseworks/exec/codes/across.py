"""The best products of a whole batch: rows compete for entries, and still only some of each row's products ever exist."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.codes import places_of
from sparseworks.core.errors import BudgetError
from sparseworks.core.patterns import unstructured
from sparseworks.core.select import select_mask
from sparseworks.exec.codes.encode import encode_topk

_AHEAD = 2.0  # entries looked at in each row, beside the mean that is kept


@torch.no_grad()
def places_across(
    x: Float[Tensor, "rows features"],
    weight: Float[Tensor, "latents features"],
    bias: Float[Tensor, " latents"] | None,
    total: int,
) -> tuple[Int[Tensor, "rows most"], Int[Tensor, " rows"], Float[Tensor, ""]]:
    """Where the `total` largest of relu(x W^T + b) over all rows lie, ascending in each row, how many a row has, and the least of them.

    Exact: the best of each row are found first, and a row whose last candidate may still be among the best is asked for twice as
    many. Ties go to the earlier row, then to the lower latent; entries that are 0 only fill up, whichever they are. The least is that
    above 0, NaN where there is none.

    Raises:
        BudgetError: more than there is, or a negative number.
        ShapeError, DtypeError, NonFiniteError: as `encode_topk`.

    Source: batch selection of Bussmann et al., 2024, arXiv 2412.06410.
    """
    rows, latents = len(x), len(weight)
    if not 0 <= total <= rows * latents:
        raise BudgetError(f"Cannot keep {total} of {rows * latents} products.")
    room = min(latents, int(_AHEAD * -(-total // max(rows, 1))) + 8)
    values, indices = _best(x, weight, bias, room)
    last = values[:, -1] if room else values.new_zeros(rows)
    while total and room < latents:
        cut = values.flatten().kthvalue(values.numel() - total + 1).values
        more = ((last >= cut) & (last > 0)).nonzero()[:, 0]
        if not len(more):
            break
        room = min(latents, 2 * room)
        values, indices = (F.pad(t, (0, room - t.shape[1]), value=v) for t, v in ((values, -torch.inf), (indices, 0)))
        values[more], indices[more] = _best(x[more], weight, bias, room)
        last[more] = values[more, -1]
    order = indices.masked_fill(values == -torch.inf, latents).argsort(dim=1)
    values, indices = values.gather(1, order), indices.gather(1, order)
    mask = select_mask(values, unstructured("tensor"), total)
    at, lengths = places_of(mask)
    kept = torch.arange(at.shape[1], device=x.device) < lengths.unsqueeze(1)
    above = values[mask & (values > 0)]
    least = above.min() if above.numel() else values.new_full((), torch.nan)
    return indices.gather(1, at).masked_fill(~kept, 0), lengths, least


def _best(x: Tensor, weight: Tensor, bias: Tensor | None, room: int) -> tuple[Tensor, Tensor]:
    codes = encode_topk(x, weight, bias, room)
    return codes.values, codes.indices
