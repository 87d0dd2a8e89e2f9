"""Static pruning of codes: each row keeps its k best entries, those near its largest, or a share of its mass."""

from __future__ import annotations

import torch

from sparseworks.core.budget import Budget, Count
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError
from sparseworks.core.select import top


def prune_codes(codes: Codes, budget: Budget | int) -> Codes:
    """Row by row the entries of largest magnitude that the budget keeps; what is kept stays in its order.

    Args:
        codes: any codes.
        budget: `Count(k)` or k; `Peak(rho)`: |w| >= rho max |w|; `Mass(alpha)`: the fewest that hold this share of the l1 norm;
            `Threshold(t)`; `Residual(r)`.

    Raises:
        BudgetError: a budget that speaks of all rows together.

    Source: document-centric and mass-centric pruning as in Bruch et al., 2024 (arXiv 2404.18812).
    """
    size, kept = codes.values.detach().abs(), codes.kept()
    lengths = kept.sum(1)
    if isinstance(budget, int):
        budget = Count(budget)
    if isinstance(budget, Count):
        keep = lengths.clamp(max=budget.value)
    elif budget.needs_scores:
        keep = torch.minimum(budget.counts(size), lengths)
    else:
        raise BudgetError(f"Codes are pruned row by row, which {budget} does not say how; use Count, Peak or Mass.")
    if not size.numel():
        return codes
    chosen = top(torch.where(kept, size, -1.0), keep)
    order = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(keep.max())]
    held = torch.arange(order.shape[1], device=order.device) < keep.unsqueeze(1)
    values = torch.where(held, codes.values.gather(1, order), 0.0)
    indices = torch.where(held, codes.indices.gather(1, order), 0)
    return Codes.unchecked(values, indices, codes.width, keep)
