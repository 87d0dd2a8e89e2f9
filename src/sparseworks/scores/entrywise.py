"""What all score formulas of one entry share: written once for a slice of columns, checked against the weight's shape."""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.core.score import Score
from sparseworks.core.stats import Stat, Stats

S = TypeVar("S", bound=Stat)


class Entrywise(Score):
    """A score whose entries depend on their own weight and statistics only; a subclass writes `columns`."""

    def __call__(self, weight: Float[Tensor, "rows cols"], stats: Stats) -> Float[Tensor, "rows cols"]:
        """The scores of all columns."""
        return self.columns(weight, stats, slice(None))

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """The formula, on the columns `at`."""
        raise NotImplementedError


def wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half-precision tensors as float32: products of 8-bit mantissas would tie by the thousand."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def fitting(stats: Stats, kind: type[S], weight: Float[Tensor, "rows cols"]) -> S:
    """The statistic of type `kind`.

    Raises:
        MissingStatError: it was not gathered.
        ShapeError: it was gathered for a site of another shape.
    """
    stat = stats[kind]
    if (stat.rows, stat.cols) != tuple(weight.shape):
        raise ShapeError(
            f"Site {stats.site!r}: {kind.__name__} was gathered for a {stat.rows}x{stat.cols} weight, "
            f"this one is {'x'.join(map(str, weight.shape))}."
        )
    return stat


def like(x: Tensor, weight: Float[Tensor, "rows cols"]) -> Tensor:
    """A statistic (float64 on the CPU) where the weight lies, in the precision scores are computed in."""
    return x.to(device=weight.device, dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32)
