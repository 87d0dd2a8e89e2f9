"""Scores of coupled units (groups of parameters) from five sums over each; higher is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import MissingStatError
from sparseworks.core.registry import Registry

GroupScore = Callable[["GroupSums"], Float[Tensor, " groups"]]
GROUP_SCORES: Registry[GroupScore] = Registry("group score")


@dataclass(frozen=True)
class GroupSums:
    """Sums over the entries x of every group; d is the direction of the optimiser, x <- x - rate d.

    Attributes:
        entries: number of entries.
        squares: |x|^2.
        direction: |d|^2, or None.
        inner: <x, d>, or None.
        gammas: sum of |gamma| over the factors of norms, and how many there are, or None.
    """

    entries: Float[Tensor, " groups"]
    squares: Float[Tensor, " groups"]
    direction: Float[Tensor, " groups"] | None = None
    inner: Float[Tensor, " groups"] | None = None
    gammas: tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]] | None = None

    def directed(self) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]:
        """(|d|^2, <x, d>).

        Raises:
            MissingStatError: no direction was given.
        """
        if self.direction is None or self.inner is None:
            raise MissingStatError("This score of groups needs the direction of the optimiser.")
        return self.direction, self.inner


@GROUP_SCORES.register("norm")
def norm(sums: GroupSums) -> Float[Tensor, " groups"]:
    """|x|_2."""
    return sums.squares.sqrt()


@GROUP_SCORES.register("mean_norm")
def mean_norm(sums: GroupSums) -> Float[Tensor, " groups"]:
    """|x|_2 / number of entries."""
    return sums.squares.sqrt() / sums.entries.clamp(min=1)


@GROUP_SCORES.register("cosine")
def cosine(sums: GroupSums) -> Float[Tensor, " groups"]:
    """cos(x, d) + 1, in [0, 2]; 1 where x or d is zero."""
    direction, inner = sums.directed()
    return inner / (sums.squares * direction).sqrt().clamp(min=torch.finfo(inner.dtype).tiny) + 1


@GROUP_SCORES.register("taylor_first")
def taylor_first(sums: GroupSums) -> Float[Tensor, " groups"]:
    """|<x, d>|: with d the gradient, the change of the loss to first order when the group goes."""
    return sums.directed()[1].abs()


@GROUP_SCORES.register("taylor_second")
def taylor_second(sums: GroupSums) -> Float[Tensor, " groups"]:
    """<x, d>^2 / 2."""
    return sums.directed()[1].square() / 2


@GROUP_SCORES.register("gamma")
def gamma(sums: GroupSums) -> Float[Tensor, " groups"]:
    """Mean |gamma| of the norms of a group (Liu et al., 2017, arXiv 1708.06519); infinite where it has none."""
    if sums.gammas is None:
        raise MissingStatError("This score of groups needs the factors of norms.")
    total, count = sums.gammas
    return torch.where(count > 0, total / count.clamp(min=1), torch.inf)


MIXED: Mapping[str, float] = dict.fromkeys(("norm", "mean_norm", "cosine", "taylor_first", "taylor_second"), 0.2)
"""Weights of HESSO's saliency."""


def mixed(sums: GroupSums, weights: Mapping[str, float] = MIXED) -> Float[Tensor, " groups"]:
    """sum_p weight_p s_p / |s_p|_2, the norm over all groups (Chen et al., 2024, arXiv 2409.09085).

    The cosine follows the released code: d points against the step, so that a group which the optimiser draws to zero scores high.
    """
    parts = [w * _unit(GROUP_SCORES.get(name)(sums)) for name, w in weights.items()]
    return torch.stack(parts).sum(dim=0)


GROUP_SCORES.register("mixed")(mixed)


def _unit(score: Float[Tensor, " groups"]) -> Float[Tensor, " groups"]:
    return score / score.norm().clamp(min=torch.finfo(score.dtype).tiny)
