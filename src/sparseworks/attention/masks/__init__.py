"""Static attention patterns as an algebra of masks that answers for blocks, pairs and single queries."""

from __future__ import annotations

from sparseworks.attention.masks.algebra import Complement, Intersection, Union
from sparseworks.attention.masks.base import MASKS, Extent, Mask, Span
from sparseworks.attention.masks.columns import Columns, Sink, Stride
from sparseworks.attention.masks.composed import FrameBand, PowerOfTwo, VerticalSlash
from sparseworks.attention.masks.elastic import Elastic
from sparseworks.attention.masks.flex import FlexBlocks, FromMod, from_block_mask, to_block_mask
from sparseworks.attention.masks.layout import Document, Neighbourhood, Prefix
from sparseworks.attention.masks.perhead import PerHead
from sparseworks.attention.masks.published import power_attention, s2, sparse_vdit_modes, triangle
from sparseworks.attention.masks.reach import receptive_field
from sparseworks.attention.masks.units import Tiled
from sparseworks.attention.masks.windows import (
    Band,
    Causal,
    Dilated,
    Full,
    LastRows,
    MultiDiagonal,
    Offsets,
    Window,
)

__all__ = [
    "MASKS",
    "Band",
    "Causal",
    "Columns",
    "Complement",
    "Dilated",
    "Document",
    "Elastic",
    "Extent",
    "FlexBlocks",
    "FrameBand",
    "FromMod",
    "Full",
    "Intersection",
    "LastRows",
    "Mask",
    "MultiDiagonal",
    "Neighbourhood",
    "Offsets",
    "PerHead",
    "PowerOfTwo",
    "Prefix",
    "Sink",
    "Span",
    "Stride",
    "Tiled",
    "Union",
    "VerticalSlash",
    "Window",
    "from_block_mask",
    "power_attention",
    "receptive_field",
    "s2",
    "sparse_vdit_modes",
    "to_block_mask",
    "triangle",
]
