"""Keep the best entries of many tensors together, by radix selection: neither concatenated nor sorted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError
from sparseworks.core.sortable import sortable, sortable_key


def select_across(scores: Sequence[Shaped[Tensor, "*_"]], total: int) -> list[Bool[Tensor, "*_"]]:
    """Keep the `total` best entries over all tensors together: masks like `scores`; ties to the earlier tensor, lower index.

    Histogram passes over 16 bits (8 where entries are few) of an order-preserving integer key each (radix selection): no
    concatenation and no sort, so memory stays at one tensor plus at most 65,536 counters.

    Args:
        scores: importance of each entry, tensor by tensor (fp64 where any tensor is fp64, otherwise compared as fp32).
        total: number of entries to keep over all tensors.

    Raises:
        NonFiniteError: NaN in the scores.
        DtypeError: scores that have no order (complex).
        BudgetError: `total` is negative or more than there is.
    """
    scores = [sortable(s) for s in scores]
    available = sum(s.numel() for s in scores)
    if not 0 <= total <= available:
        raise BudgetError(f"Cannot keep {total} of {available} entries.")
    for s in scores:
        if bool(torch.isnan(s).any()):
            raise NonFiniteError("Scores hold NaN; a selection needs every entry to be comparable.")
    if total == 0:
        return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    wide = any(s.dtype in (torch.float64, torch.int64) for s in scores)
    width = 64 if wide else 32
    cut, above = _radix_cut(scores, total, width=width)
    room, masks = total - above, []
    for s in scores:
        key = sortable_key(s, width)
        equal = key == cut
        mask = (key > cut) | (equal & (equal.reshape(-1).cumsum(0).reshape(equal.shape) <= room))
        room = max(room - int(equal.sum()), 0)
        masks.append(mask)
    return masks


def _radix_cut(scores: Sequence[Tensor], total: int, *, width: int) -> tuple[int, int]:
    """`(cut, above)`: the key of the `total`-th largest entry and how many entries lie strictly above it."""
    bits = 16 if sum(s.numel() for s in scores) > 1 << 16 else 8  # no more counters than entries
    above, prefix = 0, 0
    for shift in range(width - bits, -1, -bits):
        counts = torch.zeros(1 << bits, dtype=torch.long)
        for s in scores:
            counts += _digit_counts(sortable_key(s, width).reshape(-1), shift, bits, prefix, width)
        from_top = counts.flip(0).cumsum(0)
        digit = (1 << bits) - 1 - int(torch.searchsorted(from_top, total - above))
        above += int(counts[digit + 1 :].sum())
        prefix = (prefix << bits) | digit
    return prefix - (1 << (width - 1)), above


def _digit_counts(key: Tensor, shift: int, bits: int, prefix: int, width: int) -> Int[Tensor, " counters"]:
    """Histogram of the digit at `shift` among keys whose higher digits equal `prefix` (keys shifted to unsigned order)."""
    digit = (key >> shift).to(torch.int64) & ((1 << bits) - 1)
    if shift + bits == width:
        digit = digit ^ (1 << (bits - 1))  # signed -> unsigned order
    else:
        high = (key.to(torch.int64) >> (shift + bits)) + (1 << (width - 1 - shift - bits))
        digit = digit[high == prefix]
    return torch.bincount(digit.cpu(), minlength=1 << bits)
