"""The one act: keep the best of each group. Exact counts, stable under ties, NaN refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError
from sparseworks.core.grouped import select_grouped
from sparseworks.core.pattern import Keep, Pattern, from_groups, places, to_groups
from sparseworks.core.support import Support

_AT_ONCE = 1 << 20  # entries whose groups are ordered together: bounds work space, and stays near the caches


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
    scores = _ordered(scores)
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
        order = grouped.sort(dim=-1, descending=True).values
        at = (need - 1).clamp(min=0).expand(*grouped.shape[:-1], 1)
        cut = order.gather(-1, at)
    above, equal = grouped > cut, grouped == cut
    # Exactly `need` survive: everything above the cut, then the first of those that tie with it.
    room = need - above.sum(dim=-1, keepdim=True)
    mask = above | (equal & (equal.cumsum(dim=-1) <= room))
    return mask & (need > 0)


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
    scores = [_ordered(s) for s in scores]
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
        key = _ordered_key(s, width)
        equal = key == cut
        mask = (key > cut) | (equal & (equal.reshape(-1).cumsum(0).reshape(equal.shape) <= room))
        room = max(room - int(equal.sum()), 0)
        masks.append(mask)
    return masks


@dataclass(frozen=True)
class Certificate:
    """What `select_bounded` opened, and whether the result is proven equal to the exact one.

    Attributes:
        opened: groups whose exact scores were computed, of `groups`.
        threshold: the `keep`-th best score found (-inf while fewer were found).
        exact: no closed group has a bound that reaches the threshold, and no opened group broke its bound.
    """

    opened: int
    groups: int
    threshold: float
    exact: bool


def select_bounded(
    bounds: Float[Tensor, " groups"],
    exact: Callable[[int], tuple[Int[Tensor, " n"], Float[Tensor, " n"]]],
    keep: int,
    *,
    slack: float = 1.0,
) -> tuple[Int[Tensor, " kept"], Float[Tensor, " kept"], Certificate]:
    """The `keep` best items, opening groups in order of an upper bound and stopping when no closed group can matter.

    Group g is opened while `slack * bound_g` can beat the `keep`-th best exact score seen; `slack = 1` is exact
    (MaxScore, gap-safe screening), `slack < 1` trades recall for time (Seismic). Ties go to the lower item id.

    Args:
        bounds: for each group a number never below its best exact score.
        exact: `exact(g)` -> item ids and exact scores of group g.
        keep: number of items to keep.
        slack: in (0, 1].

    Raises:
        BudgetError: `slack` outside (0, 1] or `keep` negative.
        NonFiniteError: NaN in bounds or scores.
    """
    if not 0 < slack <= 1 or keep < 0:
        raise BudgetError(f"select_bounded needs 0 < slack <= 1 and keep >= 0, got slack={slack}, keep={keep}.")
    if bool(torch.isnan(bounds).any()):
        raise NonFiniteError("Bounds hold NaN.")
    ids, values = bounds.new_empty(0, dtype=torch.long), bounds.new_empty(0)
    order = bounds.argsort(descending=True, stable=True).tolist()
    opened, cut, sound = 0, -torch.inf, True
    for g in order:
        bound = float(bounds[g])
        if keep == 0 or (ids.numel() >= keep and min(bound, slack * bound) < cut):
            break
        new_ids, new_values = exact(g)
        if bool(torch.isnan(new_values).any()):
            raise NonFiniteError(f"Exact scores of group {g} hold NaN.")
        sound &= not bool((new_values > bound).any())
        ids, values = _best(torch.cat([ids, new_ids]), torch.cat([values, new_values]), keep)
        opened += 1
        cut = float(values[-1]) if ids.numel() >= keep else -torch.inf
    closed = order[opened:]
    proven = sound and (keep == 0 or not closed or float(bounds[closed[0]]) < cut)
    return ids, values, Certificate(opened, bounds.numel(), cut, exact=proven)


# -- pieces -------------------------------------------------------------------------------------------------------


def _best(ids: Tensor, values: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    by_id = ids.argsort(stable=True)
    best = by_id[values[by_id].argsort(descending=True, stable=True)[:keep]]
    return ids[best], values[best]


_WIDER = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64}


def _ordered(scores: Tensor) -> Tensor:
    """The same values in a type that torch can sort."""
    if scores.is_complex() or scores.dtype == torch.uint64:
        raise DtypeError(
            f"Scores must be real numbers that torch can order, got {scores.dtype}; use e.g. scores.abs()."
        )
    if scores.is_floating_point() and scores.element_size() == 1:
        return scores.float()
    return scores.to(_WIDER.get(scores.dtype, scores.dtype))


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


def _ordered_key(scores: Tensor, width: int) -> Int[Tensor, "*_"]:
    """Integers in the order of the scores: IEEE bits with the sign folded, so that int comparison is float comparison."""
    x = scores.to(torch.float64 if width == 64 else torch.float32) + 0.0  # + 0.0 makes -0.0 equal to 0.0
    bits = x.contiguous().view(torch.int64 if width == 64 else torch.int32)
    low = torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, bits ^ low, bits)


def _radix_cut(scores: Sequence[Tensor], total: int, *, width: int) -> tuple[int, int]:
    """`(cut, above)`: the key of the `total`-th largest entry and how many entries lie strictly above it."""
    bits = 16 if sum(s.numel() for s in scores) > 1 << 16 else 8  # no more counters than entries
    above, prefix = 0, 0
    for shift in range(width - bits, -1, -bits):
        counts = torch.zeros(1 << bits, dtype=torch.long)
        for s in scores:
            counts += _digit_counts(_ordered_key(s, width).reshape(-1), shift, bits, prefix, width)
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
