"""The one act: keep the best of each group. Exact counts, stable under ties, NaN refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError, PatternError, ShapeError
from sparseworks.core.pattern import Keep, Pattern, from_groups, to_groups
from sparseworks.core.support import Support


def select(scores: Shaped[Tensor, "*batch rows cols"], pattern: Pattern, keep: Keep | None = None) -> Support:
    """Keep the `keep` best units of every group of `pattern`; ties go to the lower index.

    A unit's score is the sum over its entries. Every batch element is selected on its own, with the same `keep`.

    Args:
        scores: importance of each entry; any real dtype, +-inf allowed (inf = always, -inf = last).
        pattern: unit, group, quota.
        keep: survivors per group: one number, or one per group (ragged); None takes the pattern's quota.

    Raises:
        NonFiniteError: NaN in the scores.
        ShapeError: fewer than two dimensions.
        PatternError: the pattern does not divide the shape.
        BudgetError: `keep` is missing, negative, or more than a group holds.
    """
    _check_scores(scores)
    units = _pool(scores, pattern)
    grouped = to_groups(units, pattern.group)
    quota = _quota(pattern, keep, scores.shape, *grouped.shape[-2:])
    kept = from_groups(top(grouped, quota), pattern.group, units.shape)
    mask = _expand(kept, pattern, scores.shape)
    return Support.from_mask(_select_inner(scores, mask, pattern.inner, keep) if pattern.inner else mask)


def top(grouped: Shaped[Tensor, "*batch groups n"], keep: Keep) -> Bool[Tensor, "*batch groups n"]:
    """True at the `keep` largest of each row, ties to the lower index; linear time for one common `keep`."""
    n = grouped.shape[-1]
    if grouped.numel() == 0:
        return torch.zeros_like(grouped, dtype=torch.bool)
    if isinstance(keep, Tensor) and bool((keep == keep.reshape(-1)[0]).all()):
        keep = int(keep.reshape(-1)[0])
    if isinstance(keep, int):
        if keep in (0, n):
            return torch.full_like(grouped, keep == n, dtype=torch.bool)
        cut = grouped.kthvalue(n - keep + 1, dim=-1, keepdim=True).values
        need = torch.tensor(keep)
    else:
        need = keep.to(grouped.device).reshape(-1, 1)
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

    Two or more histogram passes over 16 bits of an order-preserving integer key each (radix selection): no
    concatenation and no sort, so memory stays at one tensor plus 65,536 counters.

    Args:
        scores: importance of each entry, tensor by tensor (fp64 where any tensor is fp64, otherwise compared as fp32).
        total: number of entries to keep over all tensors.

    Raises:
        NonFiniteError: NaN in the scores.
        BudgetError: `total` is negative or more than there is.
    """
    available = sum(s.numel() for s in scores)
    if not 0 <= total <= available:
        raise BudgetError(f"Cannot keep {total} of {available} entries.")
    for s in scores:
        if bool(torch.isnan(s).any()):
            raise NonFiniteError("Scores hold NaN; a selection needs every entry to be comparable.")
    if total == 0:
        return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    wide = any(s.dtype in (torch.float64, torch.int64) for s in scores)
    scores = [s.double() if wide else s.float() for s in scores]
    cut, above = _radix_cut(scores, total, width=64 if wide else 32)
    room, masks = total - above, []
    for s in scores:
        key = _ordered_key(s)
        equal = key == cut
        mask = (key > cut) | (equal & (equal.reshape(-1).cumsum(0).reshape(equal.shape) <= room))
        room = max(room - int(equal.sum()), 0)
        masks.append(mask)
    return masks


@dataclass(frozen=True)
class Certificate:
    """What `select_bounded` opened, and whether the result is proven equal to the exact one."""

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
    ids, values = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=bounds.dtype)
    order = bounds.argsort(descending=True, stable=True)
    opened, cut = 0, -torch.inf
    for g in order.tolist():
        if keep == 0 or (ids.numel() >= keep and slack * float(bounds[g]) < cut):
            break
        new_ids, new_values = exact(g)
        if bool(torch.isnan(new_values).any()):
            raise NonFiniteError(f"Exact scores of group {g} hold NaN.")
        ids, values = torch.cat([ids, new_ids]), torch.cat([values, new_values.to(values.dtype)])
        by_id = ids.argsort(stable=True)
        best = by_id[values[by_id].argsort(descending=True, stable=True)[:keep]]
        ids, values, opened = ids[best], values[best], opened + 1
        cut = float(values[-1]) if ids.numel() >= keep else -torch.inf
    return ids, values, Certificate(opened, bounds.numel(), cut, exact=slack == 1.0)


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
    return to_groups(scores, pattern.unit).sum(dim=-1).reshape(*scores.shape[:-2], rows, cols)


def _expand(kept: Tensor, pattern: Pattern, shape: Sequence[int]) -> Tensor:
    r, c = pattern.unit.sizes(shape)
    return kept if (r, c) == (1, 1) else kept.repeat_interleave(r, dim=-2).repeat_interleave(c, dim=-1)


def _quota(pattern: Pattern, keep: Keep | None, shape: Sequence[int], groups: int, size: int) -> Keep:
    if isinstance(pattern.quota, int):
        pattern.check(shape)
        return pattern.quota
    if keep is None:
        raise BudgetError(f"Pattern {pattern} has no quota of its own: state how many to keep per group.")
    low, high = (int(keep.min()), int(keep.max())) if isinstance(keep, Tensor) and keep.numel() else (keep, keep)
    if isinstance(keep, Tensor) and keep.numel() != groups:
        raise BudgetError(
            f"{keep.numel()} counts were given for {groups} groups of pattern {pattern} on shape {tuple(shape)}."
        )
    if not isinstance(low, Tensor) and groups and (low < 0 or high > size):  # type: ignore[operator]
        raise BudgetError(
            f"Each group of {pattern} on shape {tuple(shape)} has {size} units; cannot keep {high if high > size else low}."
        )
    return keep


def _select_inner(scores: Tensor, outer: Tensor, inner: Pattern, keep: Keep | None) -> Tensor:
    """Select again inside `outer`, on the kept entries of each row moved together."""
    per_row = outer.sum(dim=-1)
    width = int(per_row.reshape(-1)[0]) if per_row.numel() else 0
    if bool((per_row != width).any()):
        raise PatternError(
            "A nested pattern needs an outer pattern that keeps the same number of entries in every row."
        )
    at = outer.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :width]
    chosen = select(scores.gather(-1, at), inner, keep).mask().to(outer.device)
    return torch.zeros_like(outer).scatter(-1, at, chosen)


def _ordered_key(scores: Tensor) -> Int[Tensor, "*_"]:
    """Integers in the order of the scores: IEEE bits with the sign folded, so that int comparison is float comparison."""
    x = scores + 0.0  # + 0.0 makes -0.0 equal to 0.0
    bits = x.contiguous().view(torch.int64 if x.dtype == torch.float64 else torch.int32)
    low = torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, bits ^ low, bits)


def _radix_cut(scores: Sequence[Tensor], total: int, *, width: int) -> tuple[int, int]:
    """`(cut, above)`: the key of the `total`-th largest entry and how many entries lie strictly above it."""
    above, prefix = 0, 0
    for level in range(width // 16 - 1, -1, -1):
        counts = torch.zeros(1 << 16, dtype=torch.long)
        for s in scores:
            counts += _digit_counts(_ordered_key(s).reshape(-1), level, prefix, width)
        from_top = counts.flip(0).cumsum(0)
        digit = (1 << 16) - 1 - int(torch.searchsorted(from_top, total - above))
        above += int(counts[digit + 1 :].sum())
        prefix = (prefix << 16) | digit
    return prefix - (1 << (width - 1)), above


def _digit_counts(key: Tensor, level: int, prefix: int, width: int) -> Int[Tensor, "65536"]:
    """Histogram of 16-bit digit `level` among keys whose higher digits equal `prefix` (keys shifted to unsigned order)."""
    top_level = width // 16 - 1
    digit = (key >> (16 * level)).to(torch.int64) & 0xFFFF
    if level == top_level:
        digit = digit ^ 0x8000  # signed -> unsigned order
    else:
        high = (key.to(torch.int64) >> (16 * (level + 1))) + (1 << (width - 1 - 16 * (level + 1)))
        digit = digit[high == prefix]
    return torch.bincount(digit.cpu(), minlength=1 << 16)
