"""Budgets are types, and resolve to integers once: how many entries (or units, or bytes) may be kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError
from sparseworks.core.registry import Registry

BUDGETS: Registry[type] = Registry("budget")

Cost = Callable[[str, int], float]
"""`cost(site name, kept entries) -> bytes | flops | milliseconds` of that site."""


class Budget:
    """What may be kept. `total(sizes)` gives kept entries over all sites; scored budgets give counts per group instead."""

    needs_scores = False

    def total(self, sizes: dict[str, int], cost: Cost | None = None) -> int:
        """Kept entries over all sites.

        Args:
            sizes: entries of each site.
            cost: for budgets in bytes, FLOPs or milliseconds.

        Raises:
            BudgetError: out of range, or a cost is missing.
        """
        raise BudgetError(f"{self} does not resolve to a total; it needs scores.")

    def counts(self, grouped: Float[Tensor, "groups n"]) -> Int[Tensor, " groups"]:
        """Survivors of each group, from its scores."""
        raise BudgetError(f"{self} resolves without scores.")


@BUDGETS.register("density")
@dataclass(frozen=True)
class Density(Budget):
    """Keep this share of all entries, in [0, 1]."""

    value: float

    def __post_init__(self):
        _in_unit("density", self.value)

    def total(self, sizes: dict[str, int], cost: Cost | None = None) -> int:
        """round(value * entries)."""
        return round(self.value * sum(sizes.values()))


@BUDGETS.register("count")
@dataclass(frozen=True)
class Count(Budget):
    """Keep this many entries."""

    value: int

    def __post_init__(self):
        if type(self.value) is not int or self.value < 0:
            raise BudgetError(f"A count is a whole number >= 0, got {self.value!r}; for a share use Density.")

    def total(self, sizes: dict[str, int], cost: Cost | None = None) -> int:
        """The count itself, checked against what there is."""
        if not 0 <= self.value <= sum(sizes.values()):
            raise BudgetError(f"Cannot keep {self.value} of {sum(sizes.values())} entries.")
        return self.value


class _Priced(Budget):
    value: float
    unit = ""

    def __post_init__(self):
        if not self.value >= 0:
            raise BudgetError(f"A budget in {self.unit} is a number >= 0, got {self.value!r}.")

    def total(self, sizes: dict[str, int], cost: Cost | None = None) -> int:
        """The largest uniform density whose summed cost stays within the value, as entries (bisection on integers)."""
        if cost is None:
            raise BudgetError(f"{self} needs a cost in {self.unit}: give `cost=`.")
        spend = lambda total: sum(cost(n, round(total * s / max(sum(sizes.values()), 1))) for n, s in sizes.items())  # noqa: E731
        low, high = 0, sum(sizes.values())
        if spend(low) > self.value:
            raise BudgetError(
                f"Even an empty support costs {spend(low):.4g} {self.unit}, above the budget of {self.value:.4g}."
            )
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if spend(middle) <= self.value else (low, middle - 1)
        return low


@BUDGETS.register("bytes")
@dataclass(frozen=True)
class Bytes(_Priced):
    """Keep what fits into this many bytes."""

    value: float
    unit = "bytes"


@BUDGETS.register("flops")
@dataclass(frozen=True)
class Flops(_Priced):
    """Keep what costs at most this many floating-point operations."""

    value: float
    unit = "FLOPs"


@BUDGETS.register("latency")
@dataclass(frozen=True)
class Latency(_Priced):
    """Keep what runs within this many milliseconds."""

    value: float
    unit = "ms"


class _Scored(Budget):
    needs_scores = True


@BUDGETS.register("mass")
@dataclass(frozen=True)
class Mass(_Scored):
    """Per group the fewest entries whose scores reach this share of the group's sum (top-p); scores must not be negative."""

    value: float

    def __post_init__(self):
        _in_unit("mass", self.value)

    def counts(self, grouped: Float[Tensor, "groups n"]) -> Int[Tensor, " groups"]:
        """Smallest k with sum of the k largest >= value * sum."""
        _no_nan(grouped)
        if bool((grouped < 0).any()):
            raise BudgetError("A mass budget needs scores that are not negative.")
        if not grouped.shape[-1]:
            return torch.zeros(grouped.shape[:-1], dtype=torch.long, device=grouped.device)
        held = grouped.double().sort(dim=-1, descending=True).values.cumsum(dim=-1)
        short = held < self.value * held[..., -1:] * (1 - 1e-12)
        return (short.sum(dim=-1) + (self.value > 0) * (held[..., -1] > 0)).clamp(max=grouped.shape[-1])


@BUDGETS.register("threshold")
@dataclass(frozen=True)
class Threshold(_Scored):
    """Keep every entry whose score is at least this."""

    value: float

    def counts(self, grouped: Float[Tensor, "groups n"]) -> Int[Tensor, " groups"]:
        """Number of scores >= value."""
        _no_nan(grouped)
        return (grouped >= self.value).sum(dim=-1)


@BUDGETS.register("peak")
@dataclass(frozen=True)
class Peak(_Scored):
    """Per group every entry whose score is at least this share of the group's largest; scores must not be negative.

    Source: the rule of Szatkowski et al., 2023, arXiv 2310.04361, who call 1 - value tau.
    """

    value: float

    def __post_init__(self):
        _in_unit("share of the peak", self.value)

    def counts(self, grouped: Float[Tensor, "groups n"]) -> Int[Tensor, " groups"]:
        """Number of scores >= value * max."""
        _no_nan(grouped)
        if bool((grouped < 0).any()):
            raise BudgetError("A peak budget needs scores that are not negative.")
        if not grouped.shape[-1]:
            return torch.zeros(grouped.shape[:-1], dtype=torch.long, device=grouped.device)
        return (grouped >= self.value * grouped.amax(dim=-1, keepdim=True)).sum(dim=-1)


@BUDGETS.register("residual")
@dataclass(frozen=True)
class Residual(_Scored):
    """Per group the fewest entries so that what is left out is at most this share of the squared norm."""

    value: float

    def __post_init__(self):
        _in_unit("residual", self.value)

    def counts(self, grouped: Float[Tensor, "groups n"]) -> Int[Tensor, " groups"]:
        """Smallest k with sum of the n-k smallest squares <= value * sum of squares."""
        _no_nan(grouped)
        left = grouped.double().square().sort(dim=-1).values.cumsum(dim=-1)
        allowed = (left <= self.value * left[..., -1:] * (1 + 1e-12)).sum(dim=-1)
        return grouped.shape[-1] - allowed


@BUDGETS.register("recall")
@dataclass(frozen=True)
class Recall(_Scored):
    """Per group the fewest entries that hold this share of the `of` largest scores (a count, not a mass)."""

    value: float
    of: int

    def __post_init__(self):
        _in_unit("recall", self.value)
        if type(self.of) is not int or self.of < 0:
            raise BudgetError(f"Recall is taken of a whole number of best scores, got of={self.of!r}.")

    def counts(self, grouped: Float[Tensor, "groups n"]) -> Int[Tensor, " groups"]:
        """ceil(value * min(of, n)) for every group."""
        n = grouped.shape[-1]
        need = -(-round(self.value * min(self.of, n) * 1e9) // 10**9)
        return torch.full(grouped.shape[:-1], int(need), device=grouped.device)


@BUDGETS.register("elbow")
@dataclass(frozen=True)
class Elbow(_Scored):
    """Per group the entries before the elbow of the sorted scores: the point i farthest from the chord between the first and the last.

    s_0 >= s_1 >= ... Below the chord the point is the foot of a slope, and the first that is left out; above it, the edge of a
    plateau, and the last that stays. At least one entry stays; of equal scores, or a straight line, all do. Neither scale nor offset
    of the scores matters.

    Source: after Wang et al., 2025, arXiv 2505.19235 (CoreMatching), who prune visual tokens so; farthest from the chord is the reading.
    """

    def counts(self, grouped: Float[Tensor, "groups n"]) -> Int[Tensor, " groups"]:
        """i or i + 1 for the point i of the largest distance."""
        _no_nan(grouped)
        n = grouped.shape[-1]
        if n < 3:
            return torch.full(grouped.shape[:-1], n, device=grouped.device)
        order = grouped.double().sort(dim=-1, descending=True).values
        first, last = order[..., :1], order[..., -1:]
        above = order - first - (last - first) * torch.arange(n, device=grouped.device) / (n - 1)
        farthest = above.abs().argmax(dim=-1, keepdim=True)
        gap = above.gather(-1, farthest)
        bends = gap.abs() > 1e-9 * (first - last)
        return (farthest + (gap > 0)).where(bends, n).squeeze(-1)


def even_split(total: int, sizes: Sequence[int]) -> list[int]:
    """Integers in proportion to `sizes` that sum to `total` exactly (largest remainders, ties to the earlier)."""
    whole = sum(sizes)
    if not 0 <= total <= whole:
        raise BudgetError(f"Cannot keep {total} of {whole} entries.")
    parts = [divmod(total * s, max(whole, 1)) for s in sizes]
    counts = [floor for floor, _ in parts]
    order = sorted(range(len(sizes)), key=lambda i: (-parts[i][1], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _no_nan(grouped: Tensor) -> None:
    if bool(torch.isnan(grouped).any()):
        raise NonFiniteError("Scores hold NaN; a budget that looks at scores needs every entry to be comparable.")


def _in_unit(what: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise BudgetError(f"A {what} lies in [0, 1], got {value}.")
