"""Clusters as units of an attention map: ragged, since every head has clusters of other sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.solve.clusters import summed


@dataclass(frozen=True)
class Clusters:
    """How many tokens each cluster holds; those of a cluster lie side by side, cluster after cluster. A cluster may be empty.

    Attributes:
        rows: queries of each cluster of queries.
        columns: keys of each cluster of keys.
    """

    rows: Int[Tensor, "batch heads rows"]
    columns: Int[Tensor, "batch kv_heads columns"]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of units."""
        return self.rows.shape[-1], self.columns.shape[-1]

    def wide(self) -> Int[Tensor, "batch heads columns"]:
        """Keys of each cluster of keys, for every query head."""
        return self.columns.repeat_interleave(self.rows.shape[1] // self.columns.shape[1], dim=1)

    def pairs(self) -> Int[Tensor, "batch heads rows columns"]:
        """How many (query, key) pairs each unit holds."""
        return self.rows.unsqueeze(-1) * self.wide().unsqueeze(-2)


def members(sizes: Int[Tensor, "*some units"], tokens: int) -> Int[Tensor, "*some tokens"]:
    """The unit in which each of the tokens lies."""
    place = torch.arange(tokens, device=sizes.device).expand(*sizes.shape[:-1], -1)
    return torch.searchsorted(sizes.cumsum(-1), place.contiguous(), right=True)


def means(x: Float[Tensor, "*some tokens d"], sizes: Int[Tensor, "*some units"]) -> Float[Tensor, "*some units d"]:
    """Mean of the tokens of each unit, 0 of none."""
    sums = summed(x, members(sizes, x.shape[-2]), sizes.shape[-1])
    return sums / sizes.clamp(min=1).to(x).unsqueeze(-1)
