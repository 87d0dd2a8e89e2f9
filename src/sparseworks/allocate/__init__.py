"""Allocators: who gets how much of the budget. Integer counts per site that sum to it exactly."""

from sparseworks.allocate.knapsack import SensitivityDP
from sparseworks.allocate.scored import DLP, OWL, Global
from sparseworks.allocate.shape import ERK, Balanced, ERKPlus, Pyramidal, UniformPlus

__all__ = ["DLP", "ERK", "OWL", "Balanced", "ERKPlus", "Global", "Pyramidal", "SensitivityDP", "UniformPlus"]
