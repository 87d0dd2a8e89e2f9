"""What every pattern must hold."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseworks.core.config import from_config, to_config
from sparseworks.core.errors import BudgetError, NonFiniteError, PatternError
from sparseworks.core.pattern import Pattern, Tile, to_groups
from sparseworks.core.support import Support
from sparseworks.testing.examples import random_weight, refused, require


def check_pattern(pattern: Pattern | str, shape: tuple[int, int] = (16, 16)) -> None:
    """Exact counts (ties, extremes), `admits(select)`, idempotence, batches, shapes that do not fit, and plain data.

    Args:
        pattern: the pattern or its text.
        shape: a matrix that the pattern divides.

    Raises:
        AssertionError: with a sentence that names the pattern and what broke.
    """
    pattern = Pattern.parse(pattern)
    scores = random_weight(*shape)
    for density in (0.0, 0.3, 0.5, 1.0):
        for values in (scores, scores.bfloat16(), torch.zeros(shape), (scores * 2).round()):
            _exact(pattern, values, density)
    _batched(pattern, shape)
    _refusals(pattern, shape)
    require(pattern.admits(Support.empty(shape)), f"{pattern} does not admit an empty support.")
    require(from_config("pattern", to_config(pattern)) == pattern, f"{pattern} does not survive a recipe.")
    empty = (0, shape[1])
    require(pattern.select(torch.zeros(empty), pattern.counts(empty, 0.0)).count == 0, f"{pattern} fails without rows.")


def _exact(pattern: Pattern, scores: Tensor, density: float) -> None:
    counts = pattern.counts(scores.shape, density)
    chosen = pattern.select(scores, counts)
    units = to_groups(chosen.mask(), pattern.unit).any(dim=-1).reshape(pattern.grid(scores.shape))
    kept = to_groups(units, pattern.group).sum(dim=-1)
    exact = bool((kept <= counts).all()) if pattern.inner else torch.equal(kept, counts)
    require(exact, f"{pattern} keeps {kept.tolist()} units a group, asked for {counts.tolist()}.")
    if pattern.fixed_density is not None:
        got = chosen.count / max(chosen.size, 1)
        require(got == pattern.fixed_density, f"{pattern} keeps {got}, it fixes {pattern.fixed_density}.")
    require(pattern.admits(chosen), f"{pattern} does not admit what it selected.")
    require(pattern.select(scores, counts) == chosen, f"{pattern} selects otherwise when asked again.")
    require(pattern.select(chosen.mask(), counts) == chosen, f"{pattern} selects otherwise from its own support.")


def _batched(pattern: Pattern, shape: tuple[int, int]) -> None:
    scores = torch.stack([random_weight(*shape, seed=i) for i in range(3)])
    counts = pattern.counts(shape, 0.5)
    whole = pattern.select(scores, counts).mask()
    alike = all(torch.equal(whole[i], pattern.select(scores[i], counts).mask()) for i in range(3))
    require(alike, f"{pattern} on a batch differs from a loop over it.")


def _refusals(pattern: Pattern, shape: tuple[int, int]) -> None:
    counts = pattern.counts(shape, 0.5)
    bad = random_weight(*shape)
    bad[0, 0] = float("nan")
    refused(lambda: pattern.select(bad, counts), NonFiniteError, f"{pattern} must refuse NaN.")
    if not isinstance(pattern.quota, int):
        refused(lambda: pattern.select(bad.nan_to_num(), None), BudgetError, f"{pattern} must ask for a count.")
        too_many = pattern.capacity(shape)[1] + 1
        refused(
            lambda: pattern.select(bad.nan_to_num(), too_many),
            BudgetError,
            f"{pattern} must refuse {too_many} of a group.",
        )
    if pattern.unit in (Tile(1, 1), Tile(1, None), Tile(None, 1)) and not isinstance(pattern.quota, int):
        return
    odd = (shape[0] + 1, shape[1] + 1)
    refused(
        lambda: pattern.check(odd), PatternError, f"{pattern} must refuse the shape {odd}, which it does not divide."
    )
