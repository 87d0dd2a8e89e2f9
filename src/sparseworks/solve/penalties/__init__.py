"""Penalties: one file each."""

from __future__ import annotations

from sparseworks.solve.penalties.cel0 import CEL0
from sparseworks.solve.penalties.elastic_net import ElasticNet
from sparseworks.solve.penalties.group import L21, Group
from sparseworks.solve.penalties.half import Half
from sparseworks.solve.penalties.l0 import L0
from sparseworks.solve.penalties.l1 import L1
from sparseworks.solve.penalties.linf import L1Ball, LInf
from sparseworks.solve.penalties.log_sum import LogSum
from sparseworks.solve.penalties.mcp import MCP
from sparseworks.solve.penalties.non_negative import Box, NonNegativeL1
from sparseworks.solve.penalties.nuclear import Nuclear
from sparseworks.solve.penalties.ridge import Ridge
from sparseworks.solve.penalties.scad import SCAD
from sparseworks.solve.penalties.slope import SLOPE
from sparseworks.solve.penalties.total_variation import TV1D
from sparseworks.solve.penalties.weighted_l1 import WeightedL1
from sparseworks.solve.penalty import PENALTIES, Norm, Penalty

__all__ = [
    "CEL0",
    "L0",
    "L1",
    "L21",
    "MCP",
    "PENALTIES",
    "SCAD",
    "SLOPE",
    "TV1D",
    "Box",
    "ElasticNet",
    "Group",
    "Half",
    "L1Ball",
    "LInf",
    "LogSum",
    "NonNegativeL1",
    "Norm",
    "Nuclear",
    "Penalty",
    "Ridge",
    "WeightedL1",
]
