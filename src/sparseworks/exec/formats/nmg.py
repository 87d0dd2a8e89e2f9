"""`nmg`: in each chunk of rows and block of m inputs every choice of n inputs is made by exactly g rows; only the rows' order is stored.

The layout n:m:g of Ivanov et al. (2023, arXiv 2304.07613): rows of one choice lie together, so a kernel loads its inputs once for g outputs.
"""

from __future__ import annotations

from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.grouped import MOST_CHOICES, choices, numbers, uses
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed, damaged, number
from sparseworks.exec.formats.segments import from_u16, masked, scatter, to_u16

WIDEST_BLOCK = 16
_TALLEST = 1 << 16  # chunks, by 16-bit rows
_BYTE = 1 << 8


class NMG(Format):
    """Parts: `rows` (chunks, blocks, C(m, n) g), the rows of the chunk in the order of their choices, 8-bit where a chunk has at
    most 256; `values` (chunks, blocks, C(m, n) g, n) in that order. Meta: `n`, `m`, `g`.
    """

    registered_name = "nmg"

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        refusal = super().refuses(support, dtype)
        if refusal is None and _layout(support) is None:
            return "its rows do not make every choice of n among m inputs equally often in each chunk of C(m, n) g rows"
        return refusal

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        values, (n, m, g) = masked(self, weight, support, dtype), _layout(support) or (1, 2, 1)
        chunk = comb(m, n) * g
        made = numbers(support.mask(), n, m).unflatten(0, (-1, chunk)).transpose(1, 2)
        order = made.argsort(dim=2, stable=True)
        tall = values.reshape(-1, chunk, made.shape[1], m).transpose(1, 2)
        ordered = tall.gather(2, order[..., None].expand(-1, -1, -1, m))
        kept = ordered.gather(3, _columns(n, m, g).expand(*order.shape, n)).contiguous()
        rows = order.to(torch.uint8) if chunk <= _BYTE else to_u16(order)
        meta = {"n": n, "m": m, "g": g}
        parts = {"rows": rows.contiguous(), "values": kept}
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts, meta)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        n, m, g, order = ordered_rows(packed)
        chunks, blocks, chunk = order.shape
        values = packed.parts["values"]
        if tuple(values.shape) != (chunks, blocks, chunk, n):
            raise damaged(packed, f"'values' has shape {tuple(values.shape)}, not {(chunks, blocks, chunk, n)}")
        rows = order + torch.arange(chunks)[:, None, None] * chunk
        columns = _columns(n, m, g) + torch.arange(blocks)[:, None, None] * m
        whole = chunks, blocks, chunk, n
        return scatter(
            packed.shape, rows[..., None].expand(whole).flatten(), columns.expand(whole).flatten(), values.flatten()
        )

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        n, m, g = _layout(support) or (1, 2, 1)
        return support.size // m * ((1 if comb(m, n) * g <= _BYTE else 2) + n * dtype.itemsize)


def ordered_rows(packed: Packed) -> tuple[int, int, int, Int[Tensor, "chunks blocks chunk"]]:
    """`(n, m, g, rows)`, with every row of a chunk exactly once in each block.

    Raises:
        KernelError: numbers or rows that fit no n:m:g layout of the shape.
    """
    out, width = packed.shape
    m = number(packed, "m", 2, WIDEST_BLOCK)
    n, g = number(packed, "n", 1, m - 1), number(packed, "g", 1, _TALLEST)
    chunk = comb(m, n) * g
    if comb(m, n) > MOST_CHOICES or chunk > _TALLEST or min(out, width) < 1 or out % chunk or width % m:
        raise damaged(packed, f"{n}:{m}:{g} does not divide it")
    rows = packed.parts["rows"]
    if tuple(rows.shape) != (out // chunk, width // m, chunk):
        raise damaged(packed, f"'rows' has shape {tuple(rows.shape)}, not {(out // chunk, width // m, chunk)}")
    if rows.dtype is not (torch.uint8 if chunk <= _BYTE else torch.int16):
        raise damaged(packed, f"'rows' is {rows.dtype}")
    order = from_u16(rows)
    if not torch.equal(order.sort(dim=2).values, torch.arange(chunk).expand_as(order)):
        raise damaged(packed, "'rows' names a row of a chunk twice")
    return n, m, g, order


def _columns(n: int, m: int, g: int) -> Int[Tensor, "chunk n"]:
    """Columns within the block that each place of a chunk keeps."""
    return choices(n, m).long().repeat_interleave(g, dim=0)


def _layout(support: Support) -> tuple[int, int, int] | None:
    """The smallest n:m:g, by m then g, that the support keeps exactly."""
    mask = support.mask()
    if not mask.numel():
        return None
    for m in range(2, WIDEST_BLOCK + 1):
        if mask.shape[1] % m:
            continue
        n, blocks = int(mask[0, :m].sum()), mask.unflatten(1, (-1, m))
        possible = 0 < n < m and comb(m, n) <= MOST_CHOICES and mask.shape[0] % comb(m, n) == 0
        if possible and bool((blocks[0].sum(dim=1) == n).all()) and bool((blocks.sum(dim=2) == n).all()):
            g = _uses(numbers(mask, n, m), comb(m, n))
            if g:
                return n, m, g
    return None


def _uses(made: Int[Tensor, "out blocks"], count: int) -> int | None:
    """The smallest g such that every choice is made exactly g times in each chunk and block."""
    times = made.shape[0] // count
    for g in range(1, min(times, _TALLEST // count) + 1):
        if times % g == 0 and all(bool((uses(part, count, count * g) == g).all()) for part in (made[:, :1], made)):
            return g
    return None


FORMATS.register(NMG.registered_name)(NMG())
