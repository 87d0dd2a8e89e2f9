"""Sparse codes: up to k values and their positions for each row, what every encoder returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sparseworks.core.ahead import is_ahead, running_ahead
from sparseworks.core.errors import DtypeError, ShapeError


@dataclass(frozen=True)
class Codes:
    """Rows with up to k entries each out of `width`: z[i, indices[i, j]] = values[i, j] for j < lengths[i].

    Attributes:
        values: floating point (rows, k).
        indices: int32 or int64 (rows, k), no index twice in a row, in [0, width).
        width: length of a dense row.
        lengths: int64 (rows,) where rows differ in length; what lies beyond has value 0 and index 0. None: all k.

    Raises:
        ShapeError: values and indices differ in shape or device, k exceeds the width, an index repeats or lies outside,
            lengths that do not fit, or something beyond them.
        DtypeError: values that are not floating point, indices that are not int32 or int64.
    """

    values: Float[Tensor, "rows k"]
    indices: Int[Tensor, "rows k"]
    width: int
    lengths: Int[Tensor, " rows"] | None = None

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
        if is_ahead():
            return
        if self.lengths is not None:
            self._check_lengths(self.lengths)
        if not self.indices.numel():
            return
        # Beyond a row's length every place counts as another index, so that only real ones can repeat.
        order = self.indices.long() if self.lengths is None else self._apart()
        order = order.sort(dim=1).values
        if int(self.indices.min()) < 0 or int(self.indices.max()) >= self.width:
            raise ShapeError(f"Indices of codes must lie in [0, {self.width}).")
        if bool((order[:, 1:] == order[:, :-1]).any()):
            raise ShapeError("An index occurs twice in a row of codes; add its values up first.")

    def _check_lengths(self, lengths: Tensor) -> None:
        if lengths.dtype != torch.int64 or lengths.shape != self.values.shape[:1]:
            raise ShapeError(f"Lengths of codes are int64 ({len(self)},), got {lengths.dtype} {tuple(lengths.shape)}.")
        if lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= self.values.shape[1]:
            raise ShapeError(f"Lengths of codes lie in 0..{self.values.shape[1]}.")
        beyond = ~self.kept()
        if bool((self.values.detach()[beyond] != 0).any() | (self.indices[beyond] != 0).any()):
            raise ShapeError("Beyond the length of a row of codes stand values or indices that are not 0.")

    def _apart(self) -> Tensor:
        places = torch.arange(self.values.shape[1], device=self.indices.device)
        return torch.where(self.kept(), self.indices.long(), self.width + places)

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def unchecked(
        cls,
        values: Float[Tensor, "rows k"],
        indices: Int[Tensor, "rows k"],
        width: int,
        lengths: Int[Tensor, " rows"] | None = None,
    ) -> Codes:
        """Codes whose indices are right by construction: a search for repeated ones sorts every row.

        Raises:
            ShapeError, DtypeError: as `Codes`, of shapes and types alone.
        """
        with running_ahead():
            return cls(values, indices, width, lengths)

    def with_values(self, values: Float[Tensor, "rows k"]) -> Codes:
        """The same places with other values, which are 0 beyond a row's length.

        Raises:
            ShapeError, DtypeError: values of another shape or device, or that are not floating point.
        """
        return Codes.unchecked(values, self.indices, self.width, self.lengths)

    @classmethod
    def whole(cls, z: Float[Tensor, "rows width"]) -> Codes:
        """All entries of z, zeros too (`nnz` counts them): values are the dense rows, indices one row in memory.

        For what runs ahead of a device, where how many entries are not 0 is not known; everything else wants `from_dense`.
        """
        return cls.unchecked(z, _every(z.shape[1], z.device).expand(len(z), -1), z.shape[1])

    @property
    def is_whole(self) -> bool:
        """Whether the indices are those of `whole`, so that the values are the dense rows, zeros too.

        Codes that list all indices themselves are not: what is compared is the memory, no entry.
        """
        if self.indices.dim() != 2 or self.indices.shape[1] != self.width:
            return False
        if len(self) > 1 and self.indices.stride(0) != 0:  # the stride of a single row says nothing
            return False
        return self.indices.data_ptr() == _every(self.width, self.indices.device).data_ptr()

    def of_latents(self, v: Shaped[Tensor, " width"]) -> Shaped[Tensor, "rows k"]:
        """v at each entry's latent; differentiable."""
        return v.expand(len(self), -1) if self.is_whole else v[self.indices.long()]

    def among(self, mask: Bool[Tensor, "rows width"]) -> Bool[Tensor, "rows k"]:
        """Which entries lie on a mask; places beyond a row's length do not."""
        return mask if self.is_whole else mask.gather(1, self.indices.long()) & self.kept()

    def kept(self) -> Tensor:
        """bool (rows, k): which places hold an entry."""
        places = torch.arange(self.values.shape[1], device=self.values.device)
        if self.lengths is None:
            return torch.ones(self.values.shape, dtype=torch.bool, device=self.values.device)
        return places < self.lengths.unsqueeze(1)

    def counts(self, on: Bool[Tensor, "rows k"] | None = None) -> Int[Tensor, " width"]:
        """On how many rows each latent is on; None: where it is not 0."""
        on = self.values.detach() != 0 if on is None else on
        if self.is_whole:
            return on.sum(0)
        none = torch.zeros(self.width, dtype=torch.long, device=on.device)
        return none.index_add_(0, self.indices.long().flatten(), on.long().flatten())

    @property
    def nnz(self) -> int:
        """Entries of all rows together, those of value 0 too."""
        return self.values.numel() if self.lengths is None else int(self.lengths.sum())

    def first(self, k: int) -> Codes:
        """The first k entries of each row, all where k is larger; of codes whose entries come best first these are the k best."""
        lengths = None if self.lengths is None else self.lengths.clamp(max=k)
        return Codes.unchecked(self.values[:, :k], self.indices[:, :k], self.width, lengths)

    def dense(self) -> Float[Tensor, "rows width"]:
        """The rows with zeros written out; differentiable in the values."""
        rows = self.values.new_zeros(len(self), self.width)
        return rows.scatter_add(1, self.indices.long(), self.values)

    def csr(self) -> tuple[Int[Tensor, " rows+1"], Int[Tensor, " nnz"], Float[Tensor, " nnz"]]:
        """(ptr, indices, values) with indices ascending in each row, for numpy, scipy and the indexes of `exec.search`."""
        kept = self.kept()
        order = self._apart().argsort(dim=1)
        ordered = kept.gather(1, order)
        ptr = torch.cat([kept.new_zeros(1, dtype=torch.long), kept.sum(1).cumsum(0)])
        return ptr, self.indices.long().gather(1, order)[ordered], self.values.gather(1, order)[ordered]

    def to(self, device: torch.device | str) -> Codes:
        """The same codes on `device`."""
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Codes.unchecked(self.values.to(device), self.indices.to(device), self.width, lengths)

    @classmethod
    def from_mask(cls, z: Float[Tensor, "rows width"], mask: Tensor) -> Codes:
        """The entries of z on a mask, ascending in each row; differentiable in z. Rows may differ in length.

        Raises:
            ShapeError: the mask has another shape.
        """
        if z.dim() != 2 or mask.shape != z.shape:
            raise ShapeError(
                f"Codes and their mask are matrices of one shape, got {tuple(z.shape)}, {tuple(mask.shape)}."
            )
        indices, lengths = places_of(mask)
        kept = torch.arange(indices.shape[1], device=z.device) < lengths.unsqueeze(1)
        values = torch.where(kept, z.gather(1, indices), torch.zeros((), dtype=z.dtype, device=z.device))
        whole = bool((lengths == indices.shape[1]).all())
        return cls.unchecked(values, indices, z.shape[1], None if whole else lengths)

    @classmethod
    def from_dense(cls, z: Float[Tensor, "rows width"]) -> Codes:
        """The entries of z that are not 0; only for what comes from elsewhere, since a kept entry may be 0."""
        return cls.from_mask(z, z != 0)


@cache
def _every(width: int, device: torch.device) -> Int[Tensor, " width"]:
    with torch.inference_mode(False):  # it is kept, and what is made there cannot be used in training later
        return torch.arange(width, device=device)


def places_of(mask: Bool[Tensor, "rows width"]) -> tuple[Int[Tensor, "rows k"], Int[Tensor, " rows"]]:
    """Indices of the True entries of each row, ascending and 0 beyond the row's last, and how many there are; k is the most of them."""
    lengths = torch.count_nonzero(mask, dim=1)
    rows, columns = mask.nonzero(as_tuple=True)
    first = lengths.cumsum(0) - lengths
    indices = torch.zeros(len(mask), int(lengths.max()) if len(mask) else 0, dtype=torch.long, device=mask.device)
    indices[rows, torch.arange(len(rows), device=mask.device) - first[rows]] = columns
    return indices, lengths
