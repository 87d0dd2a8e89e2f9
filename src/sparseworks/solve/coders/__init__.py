"""Coders: one file each."""

from __future__ import annotations

from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.coders.descent import CoordinateDescent
from sparseworks.solve.coders.greedy_blocks import GreedyBlocks
from sparseworks.solve.coders.loop import ThresholdLoop
from sparseworks.solve.coders.matching import MP, GradientPursuit, Greedy
from sparseworks.solve.coders.null_space import NSTHTFB
from sparseworks.solve.coders.omp import OMP
from sparseworks.solve.coders.proximal import ProximalGradient
from sparseworks.solve.coders.shrinkage import Thresholding
from sparseworks.solve.coders.splicing import Splicing
from sparseworks.solve.coders.splitting import GraphADMM, PrimalDual
from sparseworks.solve.coders.thresholding import HTP, IHT, CoSaMP

__all__ = [
    "CODERS",
    "HTP",
    "IHT",
    "MP",
    "NSTHTFB",
    "OMP",
    "CoSaMP",
    "Coder",
    "CoordinateDescent",
    "GradientPursuit",
    "GraphADMM",
    "Greedy",
    "GreedyBlocks",
    "PrimalDual",
    "ProximalGradient",
    "Solution",
    "Splicing",
    "ThresholdLoop",
    "Thresholding",
]
