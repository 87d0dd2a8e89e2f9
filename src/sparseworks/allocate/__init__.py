"""Allocators: who gets how much of the budget. Integer counts per site that sum to it exactly."""

from sparseworks.allocate.evolve import EvoPress, evolve
from sparseworks.allocate.given import Proportional
from sparseworks.allocate.greedy import BlockGreedy
from sparseworks.allocate.knapsack import SensitivityDP
from sparseworks.allocate.scored import DLP, OWL, Global
from sparseworks.allocate.shape import ERK, Balanced, ERKPlus, Pyramidal, UniformPlus

__all__ = [
    "DLP",
    "ERK",
    "OWL",
    "Balanced",
    "BlockGreedy",
    "ERKPlus",
    "EvoPress",
    "Global",
    "Proportional",
    "Pyramidal",
    "SensitivityDP",
    "UniformPlus",
    "evolve",
]
