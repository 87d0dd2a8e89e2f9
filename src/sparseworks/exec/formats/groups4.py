"""`groups4`: kept runs of 16 inputs in four bits each, row by row, with a scale and a zero point a run."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed, damaged
from sparseworks.exec.formats.segments import masked, pointers
from sparseworks.exec.int4 import GROUP, UINT4, from_int4, pairs, to_int4, unpaired


class Groups4(Format):
    """Parts: `codes` (groups, 8), two weights a byte; `scale` (groups, float16), `zero` (groups), `columns` (groups), run of
    inputs of each, one byte where a row has at most 256 of them and two otherwise; `ptr` (out + 1), first group of a row.

    Source: the layout of GQSA (arXiv 2412.17560), block sparse rows of 1 x 16 groups with integers inside.
    """

    registered_name = "groups4"
    dtypes = (UINT4,)

    def refuses(self, support: Support, dtype: torch.dtype = UINT4) -> str | None:
        """See `Format.refuses`."""
        refusal = super().refuses(support, dtype)
        if refusal is None and support.shape[1] % GROUP:
            return f"{support.shape[1]} inputs cannot be cut into groups of {GROUP}"
        if refusal is None and support.shape[1] // GROUP > 1 << 15:
            return f"it numbers {1 << 15} groups of a row, not {support.shape[1] // GROUP}"
        if refusal is None:
            runs = support.mask().reshape(support.shape[0], -1, GROUP)
            if not torch.equal(runs.any(dim=2), runs.all(dim=2)):
                return f"its kept entries are not whole aligned groups of {GROUP} inputs"
        return refusal

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = UINT4) -> Packed:
        """See `Format.pack`."""
        values = masked(self, weight, support, dtype)
        out, width = support.shape
        kept = support.mask().reshape(out, -1, GROUP).any(dim=2)
        return self.of_groups(kept, *to_int4(values.reshape(out, -1, GROUP)[kept]), (out, width))

    def of_groups(self, kept: Tensor, code: Tensor, scale: Tensor, zero: Tensor, shape: tuple[int, int]) -> Packed:
        """The form of given integers, such as trained ones: kept groups `(out, in / 16)`, and what they hold, row by row."""
        parts = {
            "codes": pairs(code).contiguous(),
            "scale": scale.half().contiguous(),
            "zero": zero.to(torch.uint8).contiguous(),
            "columns": kept.nonzero()[:, 1].to(_index(shape[1])).contiguous(),
            "ptr": pointers(kept.sum(dim=1)).to(torch.int32),
        }
        return Packed(self.registered_name, shape, UINT4, parts)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        p, (out, width) = packed.parts, packed.shape
        kept = torch.zeros(out, width // GROUP, dtype=torch.bool)
        kept[torch.repeat_interleave(torch.arange(out), p["ptr"].long().diff()), p["columns"].long()] = True
        n = int(kept.sum())
        sizes = {"codes": (n, GROUP // 2), "scale": (n,), "zero": (n,), "columns": (n,)}
        for name, size in sizes.items():
            if tuple(p[name].shape) != size:
                raise damaged(packed, f"{name!r} has the shape {tuple(p[name].shape)}, the form holds {n} groups")
        weight = torch.zeros(out, width // GROUP, GROUP)
        weight[kept] = from_int4(unpaired(p["codes"]), p["scale"], p["zero"])
        return weight.reshape(out, width), Support.from_mask(kept.repeat_interleave(GROUP, dim=1))

    def rounded(self, weight: Float[Tensor, "out in"], dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """Every group of 16 inputs to its own 16 numbers."""
        return from_int4(*to_int4(weight.reshape(-1, GROUP))).reshape(weight.shape)

    def nbytes(self, support: Support, dtype: torch.dtype = UINT4) -> int:
        """12 bytes (13 in wide rows) a group of 16 weights, 4 a row."""
        del dtype
        return support.count // GROUP * (GROUP // 2 + 3 + _index(support.shape[1]).itemsize) + 4 * (
            support.shape[0] + 1
        )


def _index(width: int) -> torch.dtype:
    return torch.uint8 if width // GROUP <= 256 else torch.int16


FORMATS.register(Groups4.registered_name)(Groups4())
