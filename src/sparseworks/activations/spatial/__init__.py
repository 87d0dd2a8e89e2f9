"""Activations that are sparse in space: windows, positions that all channels share, tokens of an image."""

from sparseworks.activations.spatial.masks import SharedMasks
from sparseworks.activations.spatial.positions import PositionConv2d, ReducedConv2d, SharedPositions, positions
from sparseworks.activations.spatial.search import search_sparsities
from sparseworks.activations.spatial.tokens import ElbowTokens, compact
from sparseworks.activations.spatial.transformer import WindowBlock, WindowStage, WindowTransformer
from sparseworks.activations.spatial.windows import (
    WindowMagnitude,
    nested,
    on_windows,
    partition,
    random_sparsities,
    unpartition,
    window_scores,
)

__all__ = [
    "ElbowTokens",
    "PositionConv2d",
    "ReducedConv2d",
    "SharedMasks",
    "SharedPositions",
    "WindowBlock",
    "WindowMagnitude",
    "WindowStage",
    "WindowTransformer",
    "compact",
    "nested",
    "on_windows",
    "partition",
    "positions",
    "random_sparsities",
    "search_sparsities",
    "unpartition",
    "window_scores",
]
