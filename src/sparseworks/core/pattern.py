"""Pattern = (unit, group, quota): what lives or dies together, within which set it competes, how many survive.

Unit and group are both tiles: a unit is a tile of entries, a group is a tile of units. That is enough for unstructured,
N:M, V:N:M, block, row, column and constant fan-in weights, and for codes, routers, pages and attention blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Literal

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from sparseworks.core.errors import BudgetError, PatternError
from sparseworks.core.grouped import MOST_CHOICES, numbers, uses
from sparseworks.core.support import Support

Keep = int | Int[Tensor, " groups"]


@dataclass(frozen=True)
class Tile:
    """A rectangle of `rows` x `cols` cells; None means the whole axis."""

    rows: int | None = 1
    cols: int | None = 1

    def __post_init__(self):
        for n in (self.rows, self.cols):
            if n is not None and n < 1:
                raise PatternError(f"A tile needs at least one row and one column, got {self.rows}x{self.cols}.")

    def sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        """`(rows, cols)` of the tile inside a matrix of `shape`.

        Raises:
            PatternError: the tile does not divide the shape.
        """
        rows, cols = shape[-2], shape[-1]
        r, c = self.rows or max(rows, 1), self.cols or max(cols, 1)
        for axis, size, tile in (("rows", rows, r), ("columns", cols, c)):
            if size % tile:
                raise PatternError(
                    f"{size} {axis} cannot be cut into tiles of {tile} (shape {tuple(shape)}); "
                    f"choose a pattern that divides {size}, or leave this site out."
                )
        return r, c

    def __str__(self) -> str:
        return f"{self.rows or 'all'}x{self.cols or 'all'}"


ELEMENT = Tile(1, 1)
WHOLE = Tile(None, None)
ROW = Tile(1, None)
COLUMN = Tile(None, 1)


def to_groups(x: Shaped[Tensor, "*batch rows cols"], tile: Tile) -> Shaped[Tensor, "*batch groups cells"]:
    """Cut the matrix into tiles, row-major: one row of the result per tile, its cells in row-major order."""
    *batch, rows, cols = x.shape
    r, c = tile.sizes(x.shape)
    if r == 1 or c == cols:  # tiles are contiguous: no copy
        return x.reshape(*batch, rows // r * (cols // c), r * c)
    tiled = x.reshape(*batch, rows // r, r, cols // c, c).transpose(-3, -2)
    return tiled.reshape(*batch, rows // r * (cols // c), r * c)


def from_groups(x: Shaped[Tensor, "*batch groups cells"], tile: Tile, shape: Sequence[int]) -> Shaped[Tensor, "*shape"]:
    """Inverse of `to_groups`."""
    *batch, rows, cols = shape
    r, c = tile.sizes(shape)
    if r == 1 or c == cols:
        return x.reshape(*batch, rows, cols)
    return x.reshape(*batch, rows // r, cols // c, r, c).transpose(-3, -2).reshape(*batch, rows, cols)


def places(outer: Bool[Tensor, "*batch rows cols"]) -> Int[Tensor, "*batch rows width"]:
    """Columns of the True entries of each row, ascending.

    Raises:
        PatternError: the rows hold different numbers of them.
    """
    per_row = outer.sum(dim=-1)
    width = int(per_row.flatten()[0]) if per_row.numel() else 0
    if bool((per_row != width).any()):
        raise PatternError(
            "A nested pattern needs an outer pattern that keeps the same number of entries in every row."
        )
    return outer.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :width]


@dataclass(frozen=True)
class Pattern:
    """Which supports are allowed.

    Attributes:
        unit: tile of entries that live or die together.
        group: tile of the unit grid within which units compete.
        quota: survivors per group: a number (N:M), `"equal"` (every group the same share of the budget: constant
            fan-in), `"live"` (every group the same or nothing: constant fan-in with ablated neurons), or None (the budget
            decides, shares as even as integers allow).
        inner: a second selection inside the entries kept by the first (V:N:M).
        across: groups reach over all sites of a model (global pruning); one matrix alone is then one group.
        uses: n:m:g, for groups of one row: of every C(m, n) g rows exactly g = `uses` make each of the C(m, n) choices.
    """

    unit: Tile = ELEMENT
    group: Tile = WHOLE
    quota: int | Literal["equal", "live"] | None = None
    inner: Pattern | None = None
    across: bool = False
    uses: int | None = None

    def __post_init__(self):
        if self.quota not in (None, "equal", "live") and (type(self.quota) is not int or self.quota < 0):
            raise PatternError(f'A quota is a count, "equal", "live" or None (the budget decides), got {self.quota!r}.')
        size = (self.group.rows or 0) * (self.group.cols or 0)
        if size and isinstance(self.quota, int) and self.quota > size:
            raise PatternError(f"Cannot keep {self.quota} of a group of {size} units ({self.group}).")
        if self.inner and not isinstance(self.quota, int) and not isinstance(self.inner.quota, int):
            raise PatternError("Of two nested selections at most one can take its count from the budget: give a quota.")
        if self.uses is not None:
            self._check_uses(self.uses)

    def _check_uses(self, g: int) -> None:
        n, m = self.quota, self.group.cols
        plain = self.unit == ELEMENT and self.group.rows == 1 and self.inner is None and not self.across
        if not plain or not isinstance(n, int) or m is None:
            raise PatternError("Only N:M of single entries along the inputs can spread its choices over the rows.")
        if g < 1 or not 0 < n < m or comb(m, n) > MOST_CHOICES:
            raise PatternError(
                f"N:M:G needs 0 < N < M, G >= 1 and at most {MOST_CHOICES} choices of N among M, got {n}:{m}:{g}."
            )

    # -- shapes and counts ----------------------------------------------------------------------------------------

    def check(self, shape: Sequence[int]) -> None:
        """Raise PatternError unless the pattern fits a matrix of `shape`."""
        _, size = self.capacity(shape)
        if isinstance(self.quota, int) and self.quota > size and size:
            raise PatternError(
                f"{self} keeps {self.quota} of each group, but a group of shape {tuple(shape)} has {size} units."
            )
        if self.uses and shape[-2] % self.chunk:
            raise PatternError(
                f"{shape[-2]} rows cannot be cut into chunks of {self.chunk}, which {self} needs (shape {tuple(shape)}); "
                f"choose a pattern that divides {shape[-2]}, or leave this site out."
            )

    @property
    def chunk(self) -> int:
        """Rows among which choices are spread: C(m, n) g of n:m:g, 1 of all others."""
        return comb(self.group.cols or 1, int(self.quota or 0)) * self.uses if self.uses else 1

    def grid(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the unit grid of a matrix of `shape`."""
        r, c = self.unit.sizes(shape)
        return shape[-2] // r, shape[-1] // c

    def capacity(self, shape: Sequence[int]) -> tuple[int, int]:
        """`(groups, units per group)` of a matrix of `shape`."""
        grid = self.grid(shape)
        r, c = self.group.sizes(grid)
        return (grid[0] // r) * (grid[1] // c), r * c

    @property
    def fixed_density(self) -> float | None:
        """The density that the pattern itself fixes (2:4 -> 0.5), or None where the budget decides."""
        if not isinstance(self.quota, int) or self.group.rows is None or self.group.cols is None:
            return None
        own = self.quota / (self.group.rows * self.group.cols)
        inner = self.inner.fixed_density if self.inner else 1.0
        return None if inner is None else own * inner

    def counts(self, shape: Sequence[int], budget: float | int | None) -> Int[Tensor, " groups"]:
        """Survivors per group: integers that sum to the budget (units), spread as evenly as integers allow.

        A quota of "equal" or "live" gives every group the same count, so the sum is the multiple of `groups` nearest to the budget.

        Args:
            shape: `(rows, cols)` of the matrix.
            budget: density in [0, 1] (float) or kept entries (int); ignored where the quota fixes the count.

        Raises:
            BudgetError: no budget where one is needed, or one out of range.
        """
        groups, size = self.capacity(shape)
        if isinstance(self.quota, int):
            return torch.full((groups,), self.quota)
        total = _units_of(budget, groups * size, self, shape)
        if self.quota in ("equal", "live"):
            return torch.full((groups,), round(total / groups) if groups else 0)
        edges = torch.arange(groups + 1) * total // max(groups, 1)
        return edges.diff()

    # -- selection ------------------------------------------------------------------------------------------------

    def select(self, scores: Shaped[Tensor, "*batch rows cols"], keep: Keep | None = None) -> Support:
        """See `sparseworks.core.select.select`."""
        from sparseworks.core.select import select

        return select(scores, self, keep)

    def admits(self, support: Support) -> bool:
        """Whether units are kept whole and no group holds more than its quota (equal counts where the quota says so).

        Of n:m:g: rows that keep fewer than n make no choice yet. Of a nested pattern: whether some outer choice of the quota's size holds the support, and the inner pattern
        admits what was kept of it.
        """
        try:
            self.check(support.shape)
        except PatternError:
            return False
        units = to_groups(support.mask(), self.unit)
        outer = units.any(dim=-1)
        if self.inner is None and bool((outer != units.all(dim=-1)).any()):
            return False
        grid = outer.reshape(*support.shape[:-2], *self.grid(support.shape))
        kept = to_groups(grid, self.group).sum(dim=-1)
        if self.inner is None and self.quota in ("equal", "live"):
            kept = kept[kept > 0] if self.quota == "live" else kept
            return kept.numel() == 0 or bool((kept == kept.reshape(-1)[0]).all())
        within = not isinstance(self.quota, int) or bool((kept <= self.quota).all())
        if within and self.uses:
            return self._admits_choices(support, self.uses)
        return within and (self.inner is None or self._admits_inner(support, grid, self.inner))

    def _admits_choices(self, support: Support, g: int) -> bool:
        n, m = int(self.quota or 0), self.group.cols or 1
        return bool((uses(numbers(support.mask(), n, m), comb(m, n), self.chunk) <= g).all())

    def _admits_inner(self, support: Support, grid: Tensor, inner: Pattern) -> bool:
        from sparseworks.core.select import select

        # Units with a kept entry come first and the lowest others fill the quota: what those hold is empty anyway.
        quota = self.quota if isinstance(self.quota, int) else int(to_groups(grid, self.group).sum(dim=-1).max())
        chosen = select(grid, replace(self, unit=ELEMENT, inner=None), quota).mask()
        r, c = self.unit.sizes(support.shape)
        outer = chosen.repeat_interleave(r, dim=-2).repeat_interleave(c, dim=-1)
        return inner.admits(Support.from_mask(support.mask().gather(-1, places(outer))))

    def then(self, inner: Pattern) -> Pattern:
        """Nested selection: `inner` chooses among what this pattern kept (V:N:M = panels of columns, then N:M inside)."""
        return replace(self, inner=self.inner.then(inner) if self.inner else inner)

    # -- text -----------------------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str | Pattern) -> Pattern:
        """Read a pattern from its text, see `sparseworks.core.patterns.parse`."""
        from sparseworks.core.patterns import parse

        return text if isinstance(text, Pattern) else parse(text)

    def __str__(self) -> str:
        from sparseworks.core.patterns import describe

        return describe(self)


def _units_of(budget: float | int | None, units: int, pattern: Pattern, shape: Sequence[int]) -> int:
    if budget is None:
        raise BudgetError(f"Pattern {pattern} has no quota of its own: state a density or a count.")
    if isinstance(budget, float):
        if not 0.0 <= budget <= 1.0:
            raise BudgetError(f"A density lies in [0, 1], got {budget}.")
        return round(budget * units)
    r, c = pattern.unit.sizes(shape)
    total = round(int(budget) / max(r * c, 1))
    if not 0 <= total <= units:
        raise BudgetError(f"Cannot keep {budget} of {units * r * c} entries.")
    return total
