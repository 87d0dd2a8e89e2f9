"""Support: the first-class answer to "which entries are kept", one bit an entry, never guessed from `w == 0`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from sparseworks.core.errors import DtypeError, ShapeError

if TYPE_CHECKING:
    from sparseworks.core.pattern import Tile


@dataclass(frozen=True)
class Change:
    """What happened between two supports: entries that left and entries that came."""

    dropped: Support
    grown: Support

    @property
    def count(self) -> int:
        """Number of entries that differ."""
        return self.dropped.count + self.grown.count


class Support:
    """An immutable set of kept entries of a tensor of shape `(*batch, rows, cols)`.

    Two storages, converted on demand and equal under `==`, `hash` and all set operations:
    packed bits (row-major, little-endian, 1 bit an entry) and ragged indices `(ptr, idx)` (per row the kept columns,
    ascending; batch dimensions folded into rows).
    """

    __slots__ = ("_bits", "_idx", "_ptr", "shape")

    shape: tuple[int, ...]

    def __init__(
        self,
        shape: Sequence[int],
        *,
        bits: UInt8[Tensor, " bytes"] | None = None,
        ptr: Int[Tensor, " rows+1"] | None = None,
        idx: Int[Tensor, " count"] | None = None,
    ):
        dims = tuple(int(s) for s in shape)
        if len(dims) < 2:
            raise ShapeError(f"A support covers (..., rows, cols); got shape {dims}. Add a leading dimension of 1.")
        if bits is None and (ptr is None or idx is None):
            raise ShapeError("A support needs bits, or row pointers with column indices; see from_mask, from_indices.")
        for name, value in (("shape", dims), ("_bits", bits), ("_ptr", ptr), ("_idx", idx)):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A support is immutable; cannot set {name!r}. Build a new one.")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.shape, self._bits, self._ptr, self._idx)

    # -- construction ---------------------------------------------------------------------------------------------

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "*shape"]) -> Support:
        """The support whose kept entries are the True entries of `mask`; packed bits.

        Raises:
            DtypeError: `mask` is not boolean.
        """
        if mask.dtype != torch.bool:
            raise DtypeError(
                f"A mask must be boolean, got {mask.dtype}. A support is stated, not inferred from values."
            )
        flat = mask.detach().cpu().contiguous().reshape(-1).numpy()
        return cls(mask.shape, bits=torch.from_numpy(np.packbits(flat, bitorder="little")))

    @classmethod
    def from_bits(cls, bits: UInt8[Tensor, " bytes"], shape: Sequence[int]) -> Support:
        """The support stored in `bits` (row-major, little-endian).

        Raises:
            ShapeError: the number of bytes does not fit the shape, or padding bits are set.
        """
        need = (prod(shape) + 7) // 8
        if bits.dtype != torch.uint8 or bits.numel() != need:
            raise ShapeError(
                f"Support bits of shape {tuple(shape)} need {need} bytes of uint8, got {bits.numel()} of {bits.dtype}."
            )
        spare = need * 8 - prod(shape)
        if spare and int(bits.reshape(-1)[-1]) >> (8 - spare):
            raise ShapeError(
                f"Support bits of shape {tuple(shape)} have padding bits set: the file is damaged or of another shape."
            )
        return cls(shape, bits=bits.detach().cpu().contiguous().reshape(-1))

    @classmethod
    def from_indices(cls, ptr: Int[Tensor, " rows+1"], idx: Int[Tensor, " count"], shape: Sequence[int]) -> Support:
        """The support whose row r keeps columns `idx[ptr[r]:ptr[r+1]]` (any order, no repeats).

        Raises:
            ShapeError: pointers that do not fit, columns out of range or repeated.
            DtypeError: pointers or columns that are not integers.
        """
        rows, cols = prod(shape[:-1]), shape[-1]
        if any(t.is_floating_point() or t.is_complex() or t.dtype == torch.bool for t in (ptr, idx)):
            raise DtypeError(f"Row pointers and column indices are integers, got {ptr.dtype} and {idx.dtype}.")
        ptr, idx = ptr.detach().cpu().long(), idx.detach().cpu().long()
        if ptr.numel() != rows + 1 or int(ptr[0]) != 0 or int(ptr[-1]) != idx.numel() or bool((ptr.diff() < 0).any()):
            raise ShapeError(f"Row pointers do not describe {rows} rows with {idx.numel()} entries.")
        if idx.numel() and (int(idx.min()) < 0 or int(idx.max()) >= cols):
            raise ShapeError(f"Column indices must lie in [0, {cols}).")
        row = torch.repeat_interleave(torch.arange(rows), ptr.diff())
        flat = (row * cols + idx).sort().values
        if bool((flat.diff() == 0).any()):
            raise ShapeError("Column indices repeat within a row.")
        return cls(shape, ptr=ptr, idx=flat - row * cols)

    @classmethod
    def full(cls, shape: Sequence[int]) -> Support:
        """Everything kept."""
        return cls.from_mask(torch.ones(tuple(shape), dtype=torch.bool))

    @classmethod
    def empty(cls, shape: Sequence[int]) -> Support:
        """Nothing kept."""
        return cls.from_mask(torch.zeros(tuple(shape), dtype=torch.bool))

    # -- views ----------------------------------------------------------------------------------------------------

    @property
    def storage(self) -> str:
        """`"bits"` or `"indices"`."""
        return "bits" if self._bits is not None else "indices"

    def bits(self) -> UInt8[Tensor, " bytes"]:
        """Packed bits, row-major, little-endian; `ceil(entries / 8)` bytes."""
        if self._bits is not None:
            return self._bits
        return torch.from_numpy(np.packbits(self.mask().reshape(-1).numpy(), bitorder="little"))

    def mask(self) -> Bool[Tensor, "*shape"]:
        """Boolean tensor of `shape`, True = kept."""
        if self._bits is not None:
            flat = np.unpackbits(self._bits.numpy(), count=prod(self.shape), bitorder="little")
            return torch.from_numpy(flat.view(np.bool_)).reshape(self.shape)
        assert self._ptr is not None and self._idx is not None
        mask = torch.zeros(prod(self.shape), dtype=torch.bool)
        row = torch.repeat_interleave(torch.arange(prod(self.shape[:-1])), self._ptr.diff())
        mask[row * self.shape[-1] + self._idx] = True
        return mask.reshape(self.shape)

    def indices(self) -> tuple[Int[Tensor, " rows+1"], Int[Tensor, " count"]]:
        """`(ptr, idx)`: row r keeps columns `idx[ptr[r]:ptr[r+1]]`, ascending."""
        if self._ptr is not None and self._idx is not None:
            return self._ptr, self._idx
        mask = self.mask().reshape(prod(self.shape[:-1]), self.shape[-1])
        counts = mask.sum(dim=1)
        ptr = torch.zeros(mask.shape[0] + 1, dtype=torch.long)
        torch.cumsum(counts, dim=0, out=ptr[1:])
        return ptr, mask.nonzero()[:, 1].contiguous()

    def as_bits(self) -> Support:
        """The same support, stored as packed bits."""
        return Support(self.shape, bits=self.bits())

    def as_indices(self) -> Support:
        """The same support, stored as ragged indices."""
        ptr, idx = self.indices()
        return Support(self.shape, ptr=ptr, idx=idx)

    # -- measures -------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Number of kept entries."""
        if self._idx is not None:
            return self._idx.numel()
        assert self._bits is not None
        return (
            int(np.bitwise_count(self._bits.numpy()).sum()) if hasattr(np, "bitwise_count") else int(self.mask().sum())
        )

    @property
    def size(self) -> int:
        """Number of entries, kept or not."""
        return prod(self.shape)

    @property
    def density(self) -> float:
        """Share of entries kept, in [0, 1] (1 for a support of no entries)."""
        return self.count / self.size if self.size else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the storage in use."""
        parts = [t for t in (self._bits, self._ptr, self._idx) if t is not None]
        return sum(t.numel() * t.element_size() for t in parts)

    def hash(self) -> str:
        """SHA-256 of shape and bits (hex); equal for equal supports whatever their storage."""
        digest = hashlib.sha256(repr(self.shape).encode())
        digest.update(self.bits().numpy().tobytes())
        return digest.hexdigest()

    def kept(self, by: Tile | None = None) -> Int[Tensor, "..."]:
        """Kept entries per group: one count per tile `by` of the matrix (default: the whole matrix), `(*batch, groups)`.

        Raises:
            PatternError: the tile does not divide the shape.
        """
        from sparseworks.core.pattern import Tile, to_groups

        return to_groups(self.mask(), by or Tile(None, None)).sum(dim=-1)

    # -- set algebra ----------------------------------------------------------------------------------------------

    def diff(self, other: Support) -> Change:
        """From `self` to `other`: dropped = self - other, grown = other - self."""
        return Change(dropped=self - other, grown=other - self)

    def _with(self, other: Support, combine) -> Support:
        if self.shape != other.shape:
            raise ShapeError(f"Supports of shapes {self.shape} and {other.shape} cannot be combined.")
        return Support(self.shape, bits=combine(self.bits(), other.bits()))

    def __and__(self, other: Support) -> Support:
        return self._with(other, torch.bitwise_and)

    def __or__(self, other: Support) -> Support:
        return self._with(other, torch.bitwise_or)

    def __sub__(self, other: Support) -> Support:
        return self._with(other, lambda a, b: a & ~b)

    def __invert__(self) -> Support:
        return Support.from_mask(~self.mask())

    def __le__(self, other: Support) -> bool:
        return (self - other).count == 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Support) and self.shape == other.shape and bool(torch.equal(self.bits(), other.bits()))

    def __hash__(self) -> int:
        return int(self.hash()[:15], 16)

    def __repr__(self) -> str:
        return f"Support({'x'.join(map(str, self.shape))}, kept {self.count} of {self.size}, {self.storage})"


def _rebuild(shape: tuple[int, ...], bits: Tensor | None, ptr: Tensor | None, idx: Tensor | None) -> Support:
    return Support(shape, bits=bits, ptr=ptr, idx=idx)
