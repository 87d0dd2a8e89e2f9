"""`tile`: any support at many rows of input. Rows are cut into K-blocks so that the input tile a block reads stays in L1."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format, Packed
from sparseworks.exec.formats.grid import Grid, block_sizes, cells_of, refused, segments_of, slots
from sparseworks.exec.formats.segments import masked, scatter


class Tile(Format):
    """Parts: `columns`, `values`, `ptr`, `rows`: kept weights cut and ordered as `grid` says. Meta: `k_block`, `row_block`."""

    registered_name = "tile"

    def refuses(self, support: Support, dtype: torch.dtype = torch.float32) -> str | None:
        """See `Format.refuses`."""
        return super().refuses(support, dtype) or refused(support, support.shape[1])

    def pack(self, weight: Float[Tensor, "out in"], support: Support, *, dtype: torch.dtype = torch.float32) -> Packed:
        """See `Format.pack`."""
        values, mask = masked(self, weight, support, dtype), support.mask()
        k_block = _k_block(support)
        cells = segments_of(mask, k_block)
        kept = values[mask][cells.picked].where(cells.real, torch.zeros((), dtype=dtype))
        parts = {**cells.parts, "values": kept}
        meta = {"k_block": k_block, "row_block": cells.row_block}
        return Packed(self.registered_name, (support.shape[0], support.shape[1]), dtype, parts, meta)

    def unpack(self, packed: Packed) -> tuple[Float[Tensor, "out in"], Support]:
        """See `Format.unpack`."""
        parts = packed.parts
        grid = Grid(*packed.shape, *block_sizes(packed))
        real, rows, columns = cells_of(grid, parts["ptr"], parts["columns"], parts["rows"])
        return scatter(packed.shape, rows, columns, parts["values"][real])

    def nbytes(self, support: Support, dtype: torch.dtype = torch.float32) -> int:
        """See `Format.nbytes`."""
        held, segments = slots(support.mask(), _k_block(support))
        return held * (1 + dtype.itemsize) + (segments + 1) * 4 + segments


def _k_block(support: Support) -> int:
    """Inputs of a K-block: 256 inputs of 32 tokens fill L1; where few weights are kept, longer segments are worth it."""
    return 256 if support.density < 0.15 else 192


FORMATS.register(Tile.registered_name)(Tile())
