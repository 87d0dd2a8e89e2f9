"""Lists of whole numbers as look-up tables: membership without a search, as `mask_mod` needs it, and counts below a number."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.attention.masks.base import Mask
from sparseworks.core.errors import PatternError


def whole_numbers(mask: Mask, name: str, values: Iterable[int]) -> tuple[int, ...]:
    """The values, ascending and once each.

    Raises:
        PatternError: one is not a whole number.
    """
    listed = tuple(values)
    if any(isinstance(v, bool) or not isinstance(v, int) for v in listed):
        raise PatternError(f"`{name}` of {type(mask).__name__} are whole numbers, got {listed}.")
    return listed if all(a < b for a, b in pairwise(listed)) else tuple(sorted(set(listed)))


def contains(values: tuple[int, ...], x: Int[Tensor, "*any"]) -> Bool[Tensor, "*any"]:
    """Whether x is one of the ascending values."""
    if not values:
        return x != x
    table = _table(values).to(x.device)
    return table[(x - (values[0] - 1)).clamp(0, len(table) - 1)]


def counted(values: tuple[int, ...], x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """How many of the ascending values lie below x."""
    return torch.searchsorted(_listed(values), x.contiguous())


@lru_cache(maxsize=256)
def _listed(values: tuple[int, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


@lru_cache(maxsize=64)
def _table(values: tuple[int, ...]) -> Tensor:
    """Membership of first - 1 ... last + 1."""
    table = torch.zeros(values[-1] - values[0] + 3, dtype=torch.bool)
    table[_listed(values) - values[0] + 1] = True
    return table
