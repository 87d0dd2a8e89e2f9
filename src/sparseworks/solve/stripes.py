"""How a pattern is decided while columns are swept from left to right: stripe by stripe, with the counts each one keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Keep, Pattern


@dataclass(frozen=True)
class Stripes:
    """A pattern restricted to stripes of columns.

    Attributes:
        pattern: what one stripe is selected by.
        step: columns of one stripe.
        block: columns after which a sweep updates everything to the right; a multiple of `step`.
        counts: survivors per group and stripe, or None where the pattern's quota fixes them.
    """

    pattern: Pattern
    step: int
    block: int
    counts: Int[Tensor, "groups stripes"] | None

    def keep(self, start: int) -> Keep | None:
        """Survivors per group in the stripe that begins at column `start`."""
        return None if self.counts is None else self.counts[:, start // self.step]


def stripes(pattern: Pattern, shape: tuple[int, int], keep: Keep | None, block: int) -> Stripes | None:
    """The stripes of `pattern` on a matrix of `shape`, or None where its choice cannot be made stripe by stripe.

    Groups over all columns are cut into blocks of about `block` columns and keep an even share in each; groups of a few
    columns (N:M) are taken one after another, whole.
    """
    unit, group = pattern.unit.cols, pattern.group.cols
    if unit is None or (pattern.inner is not None and not _nests(pattern)):
        return None
    if group is None:
        step = unit * max(1, block // unit)
        return Stripes(replace(pattern, quota=None), step, step, _shares(pattern, shape, keep, step))
    step = unit * group
    counts = None if isinstance(pattern.quota, int) else _as_grid(pattern, shape, keep)
    return Stripes(pattern, step, step * max(1, block // step), counts)


def _nests(pattern: Pattern) -> bool:
    """Whether the inner groups never reach over two outer groups."""
    inner, outer = pattern.inner, pattern.quota
    assert inner is not None
    if not isinstance(outer, int) or not isinstance(inner.quota, int) or inner.inner is not None:
        return False
    if pattern.unit.cols is None or inner.unit.cols is None or None in (pattern.group.cols, inner.group.cols):
        return False
    return (outer * pattern.unit.cols) % (inner.unit.cols * (inner.group.cols or 1)) == 0


def _as_grid(pattern: Pattern, shape: tuple[int, int], keep: Keep | None) -> Int[Tensor, "groups stripes"]:
    groups, size = pattern.capacity(shape)
    along = pattern.grid(shape)[1] // (pattern.group.cols or 1)
    return _counts(pattern, keep, groups, size).reshape(groups // max(along, 1), along)


def _shares(pattern: Pattern, shape: tuple[int, int], keep: Keep | None, step: int) -> Int[Tensor, "groups stripes"]:
    """Each group's count, spread over the blocks in proportion to their width; integers that sum to it exactly."""
    groups, size = pattern.capacity(shape)
    total = _counts(pattern, pattern.quota if isinstance(pattern.quota, int) else keep, groups, size)
    edges = torch.tensor([*range(0, shape[1], step), shape[1]])
    return (total.unsqueeze(1) * edges // max(shape[1], 1)).diff(dim=1)


def _counts(pattern: Pattern, keep: Keep | None, groups: int, size: int) -> Int[Tensor, " groups"]:
    if keep is None:
        raise BudgetError(f"Pattern {pattern} has no quota of its own: state how many to keep per group.")
    counts = torch.as_tensor(keep).cpu().reshape(-1)
    if counts.numel() not in (1, groups) or bool(((counts < 0) | (counts > size)).any()):
        raise BudgetError(f"{pattern} has {groups} groups of {size} units; they cannot keep {keep}.")
    return counts.expand(groups)
