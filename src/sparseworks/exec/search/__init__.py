"""Top-k inner products of sparse queries with sparse documents: every posting, with bounds, by blocks, or in two stages."""

from __future__ import annotations

from sparseworks.exec.search.blocks import Blocks
from sparseworks.exec.search.exact import InvertedIndex
from sparseworks.exec.search.forward import Forward, Ranked
from sparseworks.exec.search.impacts import Impacts
from sparseworks.exec.search.lists import Lists
from sparseworks.exec.search.rows import Rows
from sparseworks.exec.search.two_stage import TwoStageIndex

__all__ = ["Blocks", "Forward", "Impacts", "InvertedIndex", "Lists", "Ranked", "Rows", "TwoStageIndex"]
