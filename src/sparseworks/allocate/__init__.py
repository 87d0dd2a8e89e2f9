"""Allocators: who gets how much of the budget. Integer counts per site that sum to it exactly."""

from sparseworks.allocate.shape import ERK, Balanced, ERKPlus, Pyramidal, UniformPlus

__all__ = ["ERK", "Balanced", "ERKPlus", "Pyramidal", "UniformPlus"]
