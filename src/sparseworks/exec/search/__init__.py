"""Top-k inner products of sparse queries with sparse documents: every posting, or two stages."""

from __future__ import annotations

from sparseworks.exec.search.exact import InvertedIndex
from sparseworks.exec.search.rows import Rows
from sparseworks.exec.search.two_stage import TwoStageIndex

__all__ = ["InvertedIndex", "Rows", "TwoStageIndex"]
