"""Scores that need no data: magnitude and random."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.score import SCORES
from sparseworks.core.stats import Stats
from sparseworks.scores.entrywise import Entrywise, wide


@SCORES.register("magnitude")
@dataclass(frozen=True)
class Magnitude(Entrywise):
    """|W_ij|: the size of the weight (Han et al., 2015, arXiv 1506.02626)."""

    @property
    def rowwise(self) -> bool:
        """Yes."""
        return True

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """|W| on the columns `at`."""
        del stats
        return wide(weight[:, at]).abs()


@SCORES.register("random")
@dataclass(frozen=True)
class Random(Entrywise):
    """u_ij ~ U[0, 1): the control every other score has to beat.

    Fixed by the seed, the site's name and its shape, so it does not depend on the order in which sites are pruned and two
    sites of one shape do not share a mask.
    """

    seed: int = 0

    def columns(self, weight: Float[Tensor, "rows cols"], stats: Stats, at: slice) -> Float[Tensor, "rows some"]:
        """The columns `at` of the fixed draw."""
        key = f"{self.seed}|{stats.site}|{tuple(weight.shape)}"
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        return torch.rand(tuple(weight.shape), generator=generator)[:, at].to(weight.device)
