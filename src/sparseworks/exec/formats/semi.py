"""`semi`: 2:4 along the inputs in 16-bit values, for the sparse tensor cores of NVIDIA GPUs from Ampere on."""

from __future__ import annotations

import torch

from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Format
from sparseworks.exec.formats.nm import NM

ROWS, COLUMNS = 32, 64


class Semi(NM):
    """As `nm`, with exactly two of four kept and sizes that torch's two back ends, CUTLASS and cuSPARSELt, both take.

    On the way to the device torch converts it to its own layout, which depends on the GPU and holds positions in an order of
    its own; what is stored here is the same on every machine.
    """

    registered_name = "semi"
    dtypes = (torch.float16, torch.bfloat16)

    def refuses(self, support: Support, dtype: torch.dtype = torch.float16) -> str | None:
        """See `Format.refuses`."""
        refusal = Format.refuses(self, support, dtype)
        if refusal is not None:
            return refusal
        out, width = support.shape
        if not out or not width or out % ROWS or width % COLUMNS:
            return f"sparse tensor cores take multiples of {ROWS} outputs and {COLUMNS} inputs, not {out}x{width}"
        if bool((support.mask().reshape(-1, 4).sum(dim=1) != 2).any()):
            return "its groups of 4 consecutive inputs do not all keep 2"
        return None


FORMATS.register(Semi.registered_name)(Semi())
