"""Coders: one file each."""

from __future__ import annotations

from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.coders.descent import CoordinateDescent
from sparseworks.solve.coders.greedy_blocks import GreedyBlocks
from sparseworks.solve.coders.proximal import ProximalGradient
from sparseworks.solve.coders.splitting import GraphADMM, PrimalDual

__all__ = [
    "CODERS",
    "Coder",
    "CoordinateDescent",
    "GraphADMM",
    "GreedyBlocks",
    "PrimalDual",
    "ProximalGradient",
    "Solution",
]
