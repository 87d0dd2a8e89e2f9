"""The one act: keep the best of each group. Exact counts, stable under ties, NaN refused."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError
from sparseworks.core.grouped import select_grouped
from sparseworks.core.pattern import Keep, Pattern, from_groups, places, to_groups
from sparseworks.core.select_across import select_across as select_across
from sparseworks.core.select_bounded import Certificate as Certificate
from sparseworks.core.select_bounded import select_bounded as select_bounded
from sparseworks.core.sortable import sortable
from sparseworks.core.support import Support

_AT_ONCE = 1 << 20  # entries whose groups are ordered together: bounds work space, and stays near the caches
_FEW = 4  # below one in so many, the best of a row are found faster than the row is sorted


def select(scores: Shaped[Tensor, "*batch rows cols"], pattern: Pattern, keep: Keep | None = None) -> Support:
    """Keep the `keep` best units of every group of `pattern`; ties go to the lower index.

    A unit's score is the sum over its entries; n:m:g is assigned greedily, see `select_grouped`. Every batch element is selected on its own, with the same `keep`.

    Args:
        scores: importance of each entry; any real dtype, +-inf allowed (inf = always, -inf = last).
        pattern: unit, group, quota.
        keep: survivors per group: one number, or one per group (ragged), `(groups,)` or `(*batch, groups)`; None takes
            the pattern's quota. Where the pattern is nested it goes to the level that has no quota of its own.

    Raises:
        NonFiniteError: NaN in the scores, or a unit that holds both +inf and -inf.
        ShapeError: fewer than two dimensions.
        DtypeError: scores that have no order (complex), counts that are not integers.
        PatternError: the pattern does not divide the shape.
        BudgetError: `keep` is missing, negative, or more than a group holds.
    """
    return Support.from_mask(select_mask(scores, pattern, keep))


def select_mask(
    scores: Shaped[Tensor, "*batch rows cols"], pattern: Pattern, keep: Keep | None = None
) -> Bool[Tensor, "*batch rows cols"]:
    """`select` as a mask where the scores lie, for supports that change while a model trains."""
    scores = sortable(scores)
    _check_scores(scores)
    if pattern.uses:
        return _select_spread(scores, pattern, pattern.uses)
    units = _pool(scores, pattern)
    grouped = to_groups(units, pattern.group)
    quota = _quota(pattern, keep, scores.shape, grouped.shape)
    kept = from_groups(top(grouped, quota), pattern.group, units.shape)
    mask = _expand(kept, pattern, scores.shape)
    return _select_inner(scores, mask, pattern.inner, keep) if pattern.inner else mask


def top(grouped: Shaped[Tensor, "*batch groups n"], keep: Keep) -> Bool[Tensor, "*batch groups n"]:
    """True at the `keep` largest of each row, ties to the lower index; linear time for one common `keep`."""
    n = grouped.shape[-1]
    if grouped.numel() == 0:
        return torch.zeros_like(grouped, dtype=torch.bool)
    if isinstance(keep, Tensor) and bool((keep == keep.flatten()[0]).all()):
        keep = int(keep.flatten()[0])
    some = max(1, _AT_ONCE // n)
    if grouped.dim() == 2 and grouped.shape[0] > some:  # groups are independent; work space is that of some of them
        counts = [keep] * -(-grouped.shape[0] // some) if isinstance(keep, int) else keep.split(some)
        return torch.cat([top(part, count) for part, count in zip(grouped.split(some), counts, strict=True)])
    if isinstance(keep, int):
        if keep in (0, n):
            return torch.full_like(grouped, keep == n, dtype=torch.bool)
        cut = grouped.kthvalue(n - keep + 1, dim=-1, keepdim=True).values
        need = torch.tensor(keep, device=grouped.device)
    else:
        need = keep.to(grouped.device, torch.long).unsqueeze(-1)
        cut, alone = _cuts(grouped, need)
        if alone:
            return (grouped >= cut) & (need > 0)
    above, equal = grouped > cut, grouped == cut
    # Exactly `need` survive: everything above the cut, then the first of those that tie with it.
    room = need - above.sum(dim=-1, keepdim=True)
    mask = above | (equal & (equal.cumsum(dim=-1) <= room))
    return mask & (need > 0)


def _cuts(grouped: Tensor, need: Tensor) -> tuple[Tensor, bool]:
    """The `need`-th largest of each row, and whether the one after it is smaller everywhere: then nothing ties across the cut."""
    n, most = grouped.shape[-1], int(need.max())
    few = (most + 1) * _FEW < n
    order = grouped.topk(most + 1, dim=-1).values if few else grouped.sort(dim=-1, descending=True).values
    need = need.expand(*grouped.shape[:-1], 1)
    cut, after = (order.gather(-1, at) for at in ((need - 1).clamp(min=0), need.clamp(max=n - 1)))
    return cut, not bool(((cut == after) & (need > 0) & (need < n)).any())


# -- pieces -------------------------------------------------------------------------------------------------------


def _check_scores(scores: Tensor) -> None:
    if scores.dim() < 2:
        raise ShapeError(
            f"Scores are (..., rows, cols); got shape {tuple(scores.shape)}. Add a leading dimension of 1."
        )
    if scores.is_floating_point() and bool(torch.isnan(scores).any()):
        where = torch.isnan(scores).nonzero()[0].tolist()
        raise NonFiniteError(
            f"Scores of shape {tuple(scores.shape)} hold NaN, first at {where}: check the weights and the data."
        )


def _pool(scores: Tensor, pattern: Pattern) -> Tensor:
    rows, cols = pattern.grid(scores.shape)
    if pattern.unit.sizes(scores.shape) == (1, 1):
        return scores
    # 16-bit sums would round to ties or overflow, so units are compared in float32 or wider.
    wide = scores.float() if scores.is_floating_point() and scores.element_size() < 4 else scores
    pooled = to_groups(wide, pattern.unit).sum(dim=-1).reshape(*scores.shape[:-2], rows, cols)
    if scores.is_floating_point() and bool(torch.isnan(pooled).any()):
        raise NonFiniteError(f"A unit of {pattern} holds both +inf and -inf scores; their sum has no order.")
    return pooled


def _expand(kept: Tensor, pattern: Pattern, shape: Sequence[int]) -> Tensor:
    r, c = pattern.unit.sizes(shape)
    return kept if (r, c) == (1, 1) else kept.repeat_interleave(r, dim=-2).repeat_interleave(c, dim=-1)


def _quota(
    pattern: Pattern, keep: Keep | None, shape: Sequence[int], grouped: Sequence[int]
) -> int | Int[Tensor, " groups"]:
    """Survivors per group, checked; a tensor has the shape `(groups,)` or `(*batch, groups)`."""
    *_, groups, size = grouped
    if isinstance(pattern.quota, int):
        pattern.check(shape)
        return pattern.quota
    if keep is None:
        raise BudgetError(f"Pattern {pattern} has no quota of its own: state how many to keep per group.")
    if isinstance(keep, Tensor):
        if keep.is_floating_point() or keep.is_complex():
            raise DtypeError(
                f"Counts to keep are integers, got {keep.dtype}; `pattern.counts(shape, density)` gives them."
            )
        if keep.dim() == 0:
            keep = keep.expand(groups)
        keep = keep if tuple(keep.shape) == tuple(grouped[:-1]) else keep.reshape(-1)
        if keep.dim() == 1 and keep.numel() != groups:
            raise BudgetError(
                f"{keep.numel()} counts were given for {groups} groups of pattern {pattern} on shape {tuple(shape)}."
            )
    elif not isinstance(keep, Integral):
        raise DtypeError(f"A count to keep is an integer, got {keep!r}; `pattern.counts(shape, density)` gives counts.")
    else:
        keep = int(keep)
    _check_range(pattern, keep, shape, size, groups)
    return keep


def _check_range(pattern: Pattern, keep: Keep, shape: Sequence[int], size: int, groups: int) -> None:
    if not groups or (isinstance(keep, Tensor) and not keep.numel()):
        return
    low, high = (int(keep.min()), int(keep.max())) if isinstance(keep, Tensor) else (keep, keep)
    if low < 0 or high > size:
        raise BudgetError(
            f"Each group of {pattern} on shape {tuple(shape)} has {size} units; cannot keep {low if low < 0 else high}."
        )


def _select_spread(scores: Tensor, pattern: Pattern, g: int) -> Tensor:
    pattern.check(scores.shape)
    return select_grouped(scores, int(pattern.quota or 0), pattern.group.cols or 1, g)


def _select_inner(scores: Tensor, outer: Tensor, inner: Pattern, keep: Keep | None) -> Tensor:
    """Select again inside `outer`, on the kept entries of each row moved together."""
    at = places(outer)
    chosen = select_mask(scores.gather(-1, at), inner, keep)
    return torch.zeros_like(outer).scatter(-1, at, chosen)
