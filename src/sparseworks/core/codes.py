"""Sparse codes: k values and their positions for each row, what every encoder returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import DtypeError, ShapeError


@dataclass(frozen=True)
class Codes:
    """Rows with k entries each out of `width`: z[i, indices[i, j]] = values[i, j].

    Attributes:
        values: floating point (rows, k).
        indices: int32 or int64 (rows, k), no index twice in a row, in [0, width).
        width: length of a dense row.

    Raises:
        ShapeError: values and indices differ in shape or device, k exceeds the width, an index repeats or lies outside.
        DtypeError: values that are not floating point, indices that are not int32 or int64.
    """

    values: Float[Tensor, "rows k"]
    indices: Int[Tensor, "rows k"]
    width: int

    def __post_init__(self) -> None:
        if not self.values.is_floating_point() or self.indices.dtype not in (torch.int32, torch.int64):
            raise DtypeError(
                f"Codes need floating point values and int32 or int64 indices, got {self.values.dtype} and {self.indices.dtype}."
            )
        if self.values.dim() != 2 or self.values.shape != self.indices.shape:
            raise ShapeError(
                f"Values and indices of codes are both (rows, k), got {tuple(self.values.shape)} and {tuple(self.indices.shape)}."
            )
        if self.values.device != self.indices.device:
            raise ShapeError(f"Values are on {self.values.device}, indices on {self.indices.device}: move one of them.")
        if not 0 <= self.values.shape[1] <= self.width:
            raise ShapeError(f"Codes with {self.values.shape[1]} entries a row do not fit a width of {self.width}.")
        if not self.indices.numel():
            return
        order = self.indices.sort(dim=1).values
        if int(order[:, 0].min()) < 0 or int(order[:, -1].max()) >= self.width:
            raise ShapeError(f"Indices of codes must lie in [0, {self.width}).")
        if bool((order[:, 1:] == order[:, :-1]).any()):
            raise ShapeError("An index occurs twice in a row of codes; add its values up first.")

    def __len__(self) -> int:
        return len(self.values)

    def dense(self) -> Float[Tensor, "rows width"]:
        """The rows with zeros written out; differentiable in the values."""
        rows = self.values.new_zeros(len(self), self.width)
        return rows.scatter(1, self.indices.long(), self.values)

    def to(self, device: torch.device | str) -> Codes:
        """The same codes on `device`."""
        return Codes(self.values.to(device), self.indices.to(device), self.width)
